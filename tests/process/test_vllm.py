"""Real vLLM engines that move KV over NIXL on the CPU: what kvxfer collects is what vLLM itself counts.

The engines take long to start, so tests share them; the one that kills the prefill engine is the last to use it.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workers import wait_until

from examples.vllm_disagg.engines import Engine, ServingError, engines, hand_over, nixl, prefill_of, write_model
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
HERE = Path(__file__).parent
LEASE_SECONDS = 5
LINE_SECONDS = 4
BLOCK_BYTES = 2 * 2 * 2 * 32 * 32 * 4  # layers, K and V, heads, their size, tokens of a block, float32
LONG = "x" * 200  # seven blocks with what is put before it

OBSERVED = {
    "transfer_duration": "vllm:nixl_xfer_time_seconds",
    "post_duration": "vllm:nixl_post_time_seconds",
    "bytes_transferred": "vllm:nixl_bytes_transferred",
    "num_descriptors": "vllm:nixl_num_descriptors",
}
COUNTED = {
    "num_failed_transfers": ("num_failed_transfers", "num_failed_handshakes", "num_failed_notifications"),
    "num_failed_notifications": ("num_failed_notifications",),
    "num_kv_expired_reqs": ("num_kv_expired_reqs",),
    "num_notifications_after_expiry": ("num_notifications_after_expiry",),
}


def offloading(**more: Any) -> dict[str, Any]:
    extra = {"spec_name": "HostSpec", "spec_module_path": "offloading_spec", "cpu_bytes_to_use": 64 << 20} | more
    return {"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": extra}


def multi(engine_id: str, *children: dict[str, Any]) -> dict[str, Any]:
    extra = {"connectors": [{key: child[key] for key in child if key != "engine_id"} for child in children]}
    return nixl("kv_consumer", engine_id, kv_connector="MultiConnector", kv_connector_extra_config=extra)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def collector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collector]:
    endpoint = f"ipc://{tmp_path_factory.mktemp('kvxfer')}/c.ipc"
    with Collector(CollectorConfig(endpoint=endpoint)) as running:
        yield running


@pytest.fixture(scope="module")
def serving(model: Path, collector: Collector) -> Iterator[SimpleNamespace]:
    """A prefill engine and four that decode what it computed, each with kvxfer in another way."""
    on = {"KVXFER_ENDPOINT": collector.endpoint, "VLLM_LOG_STATS_INTERVAL": str(LINE_SECONDS)}
    lease = {"kv_connector_extra_config": {"kv_lease_duration": LEASE_SECONDS}}
    both = multi("both", nixl("kv_consumer", "both"), offloading(), offloading(store_threshold=0))
    old = on | {"PYTHONPATH": os.pathsep.join([str(HERE / "vllm_seam_missing"), os.environ.get("PYTHONPATH", "")])}
    here = on | {"PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])}
    found = SimpleNamespace(
        prefill=Engine(model, nixl("kv_producer", "prefill", **lease), on),
        decode=Engine(model, nixl("kv_consumer", "decode"), on),
        both=Engine(model, both, here, arguments=["--enable-prefix-caching"]),
        old=Engine(model, nixl("kv_consumer", "old"), old),
    )
    with engines(*vars(found).values()):
        yield found


def stats_of(collector: Collector, engine: str) -> Any:
    """All that was collected of an engine, None before the first report."""
    found = [group.stats for group in collector.snapshot().groups if group.labels["engine"] == engine]
    assert len(found) <= 1
    return found[0] if found else None


def ranks_of(collector: Collector, engine: str) -> list[Any]:
    """The sources of an engine, by rank."""
    found = [view for view in collector.snapshot().sources if view.source.labels["engine"] == engine]
    return sorted(found, key=lambda view: view.source.labels.get("rank", ""))


def is_as_vllm_counts(engine: Engine, stats: Any) -> bool:
    """Whether counts and bytes are vLLM's own exactly, and seconds but for the order of their sum."""
    equal = []
    for field, name in OBSERVED.items():
        state = getattr(stats, field)
        equal += [
            state.count == engine.metric(f"{name}_count"),
            state.sum == pytest.approx(engine.metric(f"{name}_sum")),
        ]
    equal.append(stats.bytes_transferred.sum == engine.metric("vllm:nixl_bytes_transferred_sum"))
    for name, counters in COUNTED.items():
        counted = sum(getattr(stats, counter).value for counter in counters)
        equal.append(counted == engine.metric(f"vllm:nixl_{name}_total"))
    return all(equal)


def nothing_was_cut(collector: Collector) -> bool:
    pipeline = collector.snapshot().pipeline
    return (pipeline.reports_lost, pipeline.reports_rejected, pipeline.observations_cut) == (0, {}, 0)


def hand_over_some(serving: Any, decode: Engine, name: str, count: int = 4) -> None:
    for number in range(count):
        assert hand_over(serving.prefill, decode, f"{name} {number} {LONG}")


# --- one rank


def test_what_is_collected_of_an_engine_is_what_vllm_counts(serving: Any, collector: Collector) -> None:
    hand_over_some(serving, serving.decode, "count")
    wait_until(lambda: serving.decode.metric("vllm:nixl_bytes_transferred_count") >= 4)
    wait_until(lambda: is_as_vllm_counts(serving.decode, stats_of(collector, "decode")))
    assert serving.decode.metric("vllm:nixl_bytes_transferred_sum") % BLOCK_BYTES == 0
    assert nothing_was_cut(collector)


def test_a_rank_says_who_it_is_from_its_own_process(serving: Any, collector: Collector) -> None:
    assert hand_over(serving.prefill, serving.decode, "who are you?")
    (rank,) = ranks_of(collector, "decode")
    assert rank.source.labels == {
        "engine": "decode",
        "role": "kv_consumer",
        "rank": "0",
        "dp_rank": "0",
        "pp_rank": "0",
        "tp_rank": "0",
    }
    assert serving.decode.lines(f"(Worker pid={rank.source.pid})")


def test_the_line_has_the_keys_and_values_of_vllms(serving: Any, collector: Collector) -> None:
    for attempt in range(5):
        lines, collected = told_of_two(serving, collector, f"line {attempt}")
        if len(lines) == 1:  # else vLLM's interval has ended between the two
            assert collected == lines[0]
            return
    pytest.fail("vLLM never told of two transfers in one line")


def told_of_two(serving: Any, collector: Collector, name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Hand over twice; vLLM's lines about it, and its keys of what was collected."""
    wait_for_a_quiet_log(serving.decode)
    num_lines, before = len(vllm_lines(serving.decode)), stats_of(collector, "decode").copy()
    hand_over_some(serving, serving.decode, name, count=2)
    wait_until(lambda: len(vllm_lines(serving.decode)) > num_lines)
    wait_for_a_quiet_log(serving.decode)
    wait_until(lambda: stats_of(collector, "decode").transfer_duration.count == before.transfer_duration.count + 2)
    return vllm_lines(serving.decode)[num_lines:], since(before, stats_of(collector, "decode"))


def vllm_lines(engine: Engine) -> list[dict[str, Any]]:
    pairs = [re.findall(r"(\w[^=,]*)=([^,]+)", line.partition("metrics: ")[2]) for line in engine.lines("KV Transfer")]
    return [{key: ast.literal_eval(value) for key, value in line} for line in pairs]


def wait_for_a_quiet_log(engine: Engine) -> None:
    """Wait for the end of an interval of vLLM's log in which nothing happened, which it tells of once."""
    quiet = "generation throughput: 0.0 tokens/s, Running: 0 reqs"
    wait_until(lambda: any(quiet in line for line in engine.lines("Engine 000: Avg")[-1:]))


def since(before: Any, after: Any) -> dict[str, Any]:
    """What vLLM's keys are of the rows that were collected between two moments."""
    held = after.to_dict()
    rows = {name: held[name][getattr(before, name).count :] for name in OBSERVED}
    reduced: dict[str, Any] = type(after)(rows).reduce()
    return reduced


# --- several connectors, an unknown vLLM


def test_children_of_a_multi_connector_are_told_apart(serving: Any, collector: Collector) -> None:
    hand_over_some(serving, serving.both, "both")
    stored = "vllm:kv_offload_store_bytes"

    def is_told() -> bool:
        stats = stats_of(collector, "both")
        if stats is None or stats.data.keys() != {"NixlPullConnector", "OffloadingConnector", "OffloadingConnector#2"}:
            return False
        each = [stats[child].reduce().get(stored, 0) for child in ("OffloadingConnector", "OffloadingConnector#2")]
        is_as_vllms = sum(each) == serving.both.metric(f"{stored}_total")
        return min(each) > 0 and is_as_vllms and is_as_vllm_counts(serving.both, stats["NixlPullConnector"])

    wait_until(is_told)
    assert [view.source.labels["rank"] for view in ranks_of(collector, "both")] == ["0", "scheduler"]
    assert nothing_was_cut(collector)


def test_a_vllm_that_kvxfer_does_not_know_is_published_from_its_front_end(serving: Any, collector: Collector) -> None:
    hand_over_some(serving, serving.old, "old")
    wait_until(lambda: serving.old.metric("vllm:nixl_bytes_transferred_count") >= 4)
    wait_until(lambda: stats_of(collector, "old") is not None)
    wait_until(lambda: is_as_vllm_counts(serving.old, stats_of(collector, "old")))
    assert len(serving.old.lines("kvxfer does not know how this vLLM makes its KV connectors")) == 1
    (merged,) = ranks_of(collector, "old")
    assert serving.old.lines(f"(APIServer pid={merged.source.pid})")


# --- failures


def test_kv_that_nobody_pulled_expires_at_the_prefill_engine(serving: Any, collector: Collector) -> None:
    before = serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total")
    prefill_of(serving.prefill, "nobody " + LONG)
    wait_until(lambda: serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total") > before)
    wait_until(lambda: is_as_vllm_counts(serving.prefill, stats_of(collector, "prefill")))


def test_a_late_pull_is_a_failure_of_its_own(serving: Any, collector: Collector) -> None:
    name = "vllm:nixl_num_notifications_after_expiry_total"
    before, expired = serving.prefill.metric(name), serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total")
    found = prefill_of(serving.prefill, "late " + LONG)
    wait_until(lambda: serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total") > expired)
    serving.decode.complete("late " + LONG, kv_transfer_params=found)
    prefill_of(serving.prefill, "a step, in which it hears of that")
    wait_until(lambda: serving.prefill.metric(name) > before)
    wait_until(lambda: is_as_vllm_counts(serving.prefill, stats_of(collector, "prefill")))


def test_a_killed_prefill_engine_shows_as_failures_of_the_other(serving: Any, collector: Collector) -> None:
    before = stats_of(collector, "decode").failures()
    found = prefill_of(serving.prefill, "killed " + LONG)
    serving.prefill.kill()
    with pytest.raises(ServingError, match="500"):
        serving.decode.complete("killed " + LONG, kv_transfer_params=found)
    wait_until(lambda: stats_of(collector, "decode").failures() != before)
    wait_until(lambda: is_as_vllm_counts(serving.decode, stats_of(collector, "decode")))


# --- two ranks


def test_two_ranks_sum_to_what_vllm_counts_and_lose_nothing_when_they_are_stopped(
    model: Path, collector: Collector
) -> None:
    unusable = {"KVXFER_ENDPOINT": "nonsense"}
    prefill = Engine(model, nixl("kv_producer", "prefill-2"), unusable, tensor_parallel=2)
    decode = Engine(model, nixl("kv_consumer", "decode-2"), {"KVXFER_ENDPOINT": collector.endpoint}, tensor_parallel=2)
    with engines(prefill, decode):
        hand_over_some(SimpleNamespace(prefill=prefill), decode, "two")
        wait_until(lambda: decode.metric("vllm:nixl_bytes_transferred_count") >= 8)
        wait_until(lambda: is_as_vllm_counts(decode, stats_of(collector, "decode-2")))
        assert hand_over(prefill, decode, f"the last {LONG}")
        assert decode.stop() == 0
    ranks = ranks_of(collector, "decode-2")
    assert [view.source.labels["tp_rank"] for view in ranks] == ["0", "1"]
    assert [view.stats.transfer_duration.count for view in ranks] == [5, 5]
    assert ranks[0].source.pid != ranks[1].source.pid
    assert [view.stats.bytes_transferred.sum for view in ranks] == [5 * 7 * BLOCK_BYTES / 2] * 2
    said = prefill.lines("kvxfer cannot publish stats of NixlConnector: expected ipc://PATH or tcp://HOST:PORT")
    assert len(said) == 2, "each rank says once that its endpoint is none, and serves"
