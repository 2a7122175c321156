"""Stats out of reports, by classes that may be somebody else's: what they raise costs nobody else anything."""

import contextlib
from collections.abc import Iterator

from kvxfer.contract import KVConnectorStats
from kvxfer.errors import ImplausibleError, KVXferError, PeerError, UnknownConnectorError
from kvxfer.factory import KVConnectorFactory
from kvxfer.wire import Report, decode_payload


class ConnectorFailedError(PeerError):
    """A connector's own class that raised on a payload."""

    cause = "connector_failed"


def open_stats(report: Report) -> KVConnectorStats:
    """The stats in a report, built by the class that is registered here for its connector."""
    payload = decode_payload(report.payload)
    with class_of_somebody_else():
        connector = KVConnectorFactory.get_connector_class_by_name(report.connector)
        stats = connector.build_kv_connector_stats(payload)
    if stats is None:
        message = f"{report.connector} builds no stats"
        raise ConnectorFailedError(message)
    return stats


def empty_stats(connector: str) -> KVConnectorStats | None:
    """Stats of a connector that hold nothing; None of one that has none, is not registered, or keeps no totals."""
    try:
        stats = KVConnectorFactory.get_connector_class_by_name(connector).build_kv_connector_stats()
        return stats if stats is not None and stats.is_bounded() else None
    except Exception:  # noqa: BLE001 - a class of somebody else costs the others nothing
        return None


def cause_of(error: KVXferError) -> str:
    """Under which name a refused message is counted."""
    if isinstance(error, PeerError):
        return error.cause
    return "unknown_connector" if isinstance(error, UnknownConnectorError) else ImplausibleError.cause


@contextlib.contextmanager
def class_of_somebody_else() -> Iterator[None]:
    """What a connector's class raises, other than our own errors, is a `ConnectorFailedError`."""
    try:
        yield
    except KVXferError:
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise ConnectorFailedError(message) from error


def merged(held: KVConnectorStats | None, stats: KVConnectorStats) -> KVConnectorStats:
    """Merge stats that stay as they are. Lists of somebody else's class may be taken as they are, hence the copy."""
    if held is None:
        return stats.copy()
    return held.aggregate(stats if stats.is_bounded() else stats.copy())
