"""Copies of stats that somebody else collected, and may go on changing."""

from collections.abc import Mapping
from typing import Any

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.factory import KVConnectorFactory
from kvxfer.wire import decode_payload, encode_payload


def copy_of(stats: Any, connector: str) -> KVConnectorStats | None:  # noqa: ANN401 - any vLLM-style object
    """Stats of the connector, or where it is not registered of the same class, made of the payload.

    Raises whatever a class of somebody else does, TypeError for a payload that msgpack cannot hold.
    """
    payload = stats if isinstance(stats, Mapping) else _payload_of(stats)
    copied = decode_payload(msgspec.Raw(bytes(encode_payload(payload))))
    if KVConnectorFactory.is_registered(connector):
        return KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(copied)
    copy: KVConnectorStats = type(stats)(data=copied)
    return copy


def _payload_of(stats: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any vLLM-style object
    to_dict = getattr(stats, "to_dict", None)
    payload: Mapping[str, Any] = to_dict() if to_dict is not None else stats.data
    return payload
