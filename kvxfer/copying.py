"""Copies of stats that somebody else collected, and may go on changing."""

from collections.abc import Mapping
from typing import Any

import msgspec

from kvxfer.contract import KVConnectorStats
from kvxfer.factory import KVConnectorFactory
from kvxfer.wire import decode_payload, encode_payload


def copy_of(stats: Any, connector: str) -> KVConnectorStats | None:  # noqa: ANN401 - any vLLM-style object
    """Stats of the connector made of the payload, which share nothing with it.

    Of a connector that is not registered here they are of the same class, where that is one of kvxfer's contract, and
    else generic, as is such a child of a MultiConnector: who collects has to name it, and until then they are kept.
    Raises whatever a class of somebody else does, TypeError for a payload that msgpack cannot hold.
    """
    payload = stats if isinstance(stats, Mapping) else payload_of(stats)
    copied = decode_payload(msgspec.Raw(bytes(encode_payload(payload))))
    if isinstance(stats, KVConnectorStats) and not KVConnectorFactory.is_registered(connector):
        return type(stats)(data=copied)
    return _built(connector, copied)


def _built(connector: str, payload: dict[str, Any]) -> KVConnectorStats | None:
    if connector == "MultiConnector":
        from kvxfer.connectors.multi import MultiConnector  # noqa: PLC0415 - no connector is loaded before it is in use

        return MultiConnector.build_known_or_generic(payload)
    if not KVConnectorFactory.is_registered(connector):
        return KVConnectorFactory.get_generic_class(connector).build_kv_connector_stats(payload)
    return KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats(payload)


def payload_of(stats: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any vLLM-style object
    """The payload of an object that has ``to_dict()``, or else ``data``."""
    to_dict = getattr(stats, "to_dict", None)
    payload: Mapping[str, Any] = to_dict() if to_dict is not None else stats.data
    return payload
