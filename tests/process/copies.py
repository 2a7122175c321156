"""A connector as somebody else writes one, with two fields of each kind whose names end alike."""

from kvxfer.connectors.base import Connector
from kvxfer.fields import Counter, Distribution
from kvxfer.rows import Row
from kvxfer.stats import TransferStats

ENTRY_POINT = "[kvxfer.connectors]\nCopyConnector = copies:CopyConnector\n"


class CopyStats(TransferStats):
    """Copies between devices, and from host to device."""

    transfer_duration = Distribution("s", "Time of one copy.")
    moved_bytes = Distribution("By", "Bytes of one copy.")
    h2d_transfer_duration = Distribution("s", "Time of one copy from the host.")
    h2d_moved = Distribution("By", "Bytes of one copy from the host.")
    num_failed_transfers = Counter("{copy}", "Copies that failed.", failure=True)
    h2d_num_failed_transfers = Counter("{copy}", "Copies from the host that failed.", failure=True)
    record_copy = Row(transfer_duration, moved_bytes, duration=transfer_duration, size=moved_bytes)
    record_h2d = Row(h2d_transfer_duration, h2d_moved, duration=h2d_transfer_duration, size=h2d_moved)


class CopyConnector(Connector):
    """Their connector."""

    stats_class = CopyStats
