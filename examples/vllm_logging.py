"""vLLM's front end with kvxfer's `KVConnectorLogging` in the place of its own: the same line, and nothing that raises.

vLLM's class raises in its front end on a payload that it cannot read, or without a connector; kvxfer's leaves that
payload out, with one warning. To have it in every front end, offer `use_kvxfer` as an entry point of your package:

    [project.entry-points."vllm.general_plugins"]
    kv_logging = "your_package.vllm_logging:use_kvxfer"

Here vLLM's own stat logger observes twice what an engine step told, once as it is and once with kvxfer's class, and
then a payload that is none. Run (with vLLM 0.32 installed; importing it takes some seconds):

    python examples/vllm_logging.py

It prints:

    vLLM:   KV Transfer metrics: Num successful transfers=2, Avg xfer time (ms)=1.5, …, Num failed transfers=1, …
    kvxfer: KV Transfer metrics: Num successful transfers=2, Avg xfer time (ms)=1.5, …, Num failed transfers=1, …
    the same: True
    of a payload that is none: vLLM raises TypeError, kvxfer logs '', with one warning
"""

import logging
from typing import Any

from vllm.config import KVTransferConfig, VllmConfig
from vllm.v1.metrics import loggers
from vllm.v1.metrics.stats import SchedulerStats

import kvxfer

STEP = {
    "transfer_duration": [0.001, 0.002],
    "post_duration": [0.0001, 0.0002],
    "bytes_transferred": [1 << 20, 2 << 20],
    "num_descriptors": [4, 6],
    "num_failed_transfers": [1],
    "num_failed_handshakes": [],
    "num_failed_notifications": [],
    "num_kv_expired_reqs": [],
    "num_notifications_after_expiry": [],
}


def use_kvxfer() -> None:
    """Let each stat logger of this front end that is made from now on have kvxfer's class."""
    loggers.KVConnectorLogging = kvxfer.KVConnectorLogging


def logged(payload: dict[str, Any]) -> str:
    """The line that vLLM's stat logger logs for a step with this payload."""
    transfer = KVTransferConfig(kv_connector="NixlConnector", kv_role="kv_both")
    logger, lines = loggers.LoggingStatLogger(VllmConfig(kv_transfer_config=transfer)), list[str]()
    logger.record(SchedulerStats(kv_connector_stats=payload), None)
    logger.kv_connector_logging.log(lambda line, *values: lines.append(line % values if values else line))
    return "".join(lines)


def main() -> None:
    """Show both."""
    logging.getLogger("vllm").setLevel(logging.ERROR)
    unreadable = STEP | {"transfer_duration": None}
    theirs = logged(STEP)
    try:
        raised = f"logs {logged(unreadable)!r}"
    except TypeError as error:
        raised = f"raises {type(error).__name__}"
    use_kvxfer()
    ours = logged(STEP)
    print(f"vLLM:   {theirs}\nkvxfer: {ours}\nthe same: {theirs == ours}")
    print(f"of a payload that is none: vLLM {raised}, kvxfer logs {logged(unreadable)!r}, with one warning")


if __name__ == "__main__":
    main()
