"""A real vLLM engine of two ranks: each publishes from its own process, and together they are what vLLM counts."""

from pathlib import Path

import pytest
from vllm_counts import BLOCK_BYTES, LONG, hand_over_some, is_as_vllm_counts, ranks_of, stats_of, wait_for

from examples.vllm_disagg.engines import Engine, engines, hand_over, nixl, write_model
from kvxfer.collector import Collector

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


def test_two_ranks_sum_to_what_vllm_counts_and_lose_nothing_when_they_are_stopped(
    tmp_path: Path, collector: Collector
) -> None:
    model = write_model(tmp_path / "model")
    prefill = Engine(model, nixl("kv_producer", "prefill"), {"KVXFER_ENDPOINT": "nonsense"})
    decode = Engine(
        model,
        nixl("kv_consumer", "decode"),
        {"KVXFER_ENDPOINT": collector.endpoint},
        tensor_parallel=2,
        arguments=["--shutdown-timeout", "30"],  # without it vLLM kills its workers at once
    )
    with engines(prefill, decode):
        hand_over_some(prefill, decode, "two")
        wait_for(lambda: decode.metric("vllm:nixl_bytes_transferred_count") >= 8)
        wait_for(lambda: is_as_vllm_counts(decode, stats_of(collector, "decode")))
        assert hand_over(prefill, decode, f"the last {LONG}")
        assert decode.stop() == 0
    ranks = ranks_of(collector, "decode")
    assert [view.source.labels["tp_rank"] for view in ranks] == ["0", "1"]
    assert [view.stats.transfer_duration.count for view in ranks] == [5, 5]
    assert [view.stats.bytes_transferred.sum for view in ranks] == [5 * 7 * BLOCK_BYTES / 2] * 2
    assert ranks[0].source.pid != ranks[1].source.pid
    said = prefill.lines("kvxfer cannot publish stats of NixlConnector: expected ipc://PATH or tcp://HOST:PORT")
    assert len(said) == 1, "an endpoint that is none is one warning, and serving goes on"
