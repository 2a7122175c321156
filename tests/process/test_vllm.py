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
from vllm_counts import (
    BLOCK_BYTES,
    LONG,
    OBSERVED,
    hand_over_some,
    is_as_vllm_counts,
    nothing_was_cut,
    ranks_of,
    stats_of,
    wait_for,
)

from examples.vllm_disagg.engines import Engine, ServingError, engines, hand_over, nixl, prefill_of, write_model
from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
HERE = Path(__file__).parent
LEASE_SECONDS = 5
LINE_SECONDS = 4


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


# --- one rank


def test_what_is_collected_of_an_engine_is_what_vllm_counts(serving: Any, collector: Collector) -> None:
    hand_over_some(serving.prefill, serving.decode, "count")
    wait_for(lambda: serving.decode.metric("vllm:nixl_bytes_transferred_count") >= 4)
    wait_for(lambda: is_as_vllm_counts(serving.decode, stats_of(collector, "decode")))
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
    hand_over_some(serving.prefill, serving.decode, name, count=2)
    wait_for(lambda: len(vllm_lines(serving.decode)) > num_lines)
    wait_for_a_quiet_log(serving.decode)
    wait_for(lambda: stats_of(collector, "decode").transfer_duration.count == before.transfer_duration.count + 2)
    return vllm_lines(serving.decode)[num_lines:], since(before, stats_of(collector, "decode"))


def vllm_lines(engine: Engine) -> list[dict[str, Any]]:
    pairs = [re.findall(r"(\w[^=,]*)=([^,]+)", line.partition("metrics: ")[2]) for line in engine.lines("KV Transfer")]
    return [{key: ast.literal_eval(value) for key, value in line} for line in pairs]


def wait_for_a_quiet_log(engine: Engine) -> None:
    """Wait for the end of an interval of vLLM's log in which nothing happened, which it tells of once."""
    quiet = "generation throughput: 0.0 tokens/s, Running: 0 reqs"
    wait_for(lambda: any(quiet in line for line in engine.lines("Engine 000: Avg")[-1:]))


def since(before: Any, after: Any) -> dict[str, Any]:
    """What vLLM's keys are of the rows that were collected between two moments."""
    held = after.to_dict()
    rows = {name: held[name][getattr(before, name).count :] for name in OBSERVED}
    reduced: dict[str, Any] = type(after)(rows).reduce()
    return reduced


# --- several connectors, an unknown vLLM


def test_children_of_a_multi_connector_are_told_apart(serving: Any, collector: Collector) -> None:
    hand_over_some(serving.prefill, serving.both, "both")
    stored = "vllm:kv_offload_store_bytes"

    def is_told() -> bool:
        stats = stats_of(collector, "both")
        if stats is None or stats.data.keys() != {"NixlPullConnector", "OffloadingConnector", "OffloadingConnector#2"}:
            return False
        each = [stats[child].reduce().get(stored, 0) for child in ("OffloadingConnector", "OffloadingConnector#2")]
        is_as_vllms = sum(each) == serving.both.metric(f"{stored}_total")
        return min(each) > 0 and is_as_vllms and is_as_vllm_counts(serving.both, stats["NixlPullConnector"])

    wait_for(is_told)
    assert [view.source.labels["rank"] for view in ranks_of(collector, "both")] == ["0", "scheduler"]
    assert nothing_was_cut(collector)


def test_a_vllm_that_kvxfer_does_not_know_is_published_from_its_front_end(serving: Any, collector: Collector) -> None:
    hand_over_some(serving.prefill, serving.old, "old")
    wait_for(lambda: serving.old.metric("vllm:nixl_bytes_transferred_count") >= 4)
    wait_for(lambda: stats_of(collector, "old") is not None)
    wait_for(lambda: is_as_vllm_counts(serving.old, stats_of(collector, "old")))
    assert len(serving.old.lines("kvxfer does not know how this vLLM makes its KV connectors")) == 1
    (merged,) = ranks_of(collector, "old")
    assert serving.old.lines(f"(APIServer pid={merged.source.pid})")


# --- failures


def test_kv_that_nobody_pulled_expires_at_the_prefill_engine(serving: Any, collector: Collector) -> None:
    before = serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total")
    prefill_of(serving.prefill, "nobody " + LONG)
    wait_for(lambda: serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total") > before)
    wait_for(lambda: is_as_vllm_counts(serving.prefill, stats_of(collector, "prefill")))


def test_a_late_pull_is_a_failure_of_its_own(serving: Any, collector: Collector) -> None:
    name = "vllm:nixl_num_notifications_after_expiry_total"
    before, expired = serving.prefill.metric(name), serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total")
    found = prefill_of(serving.prefill, "late " + LONG)
    wait_for(lambda: serving.prefill.metric("vllm:nixl_num_kv_expired_reqs_total") > expired)
    serving.decode.complete("late " + LONG, kv_transfer_params=found)
    prefill_of(serving.prefill, "a step, in which it hears of that")
    wait_for(lambda: serving.prefill.metric(name) > before)
    wait_for(lambda: is_as_vllm_counts(serving.prefill, stats_of(collector, "prefill")))


def test_a_killed_prefill_engine_shows_as_failures_of_the_other(serving: Any, collector: Collector) -> None:
    before = stats_of(collector, "decode").failures()
    found = prefill_of(serving.prefill, "killed " + LONG)
    serving.prefill.kill()
    with pytest.raises(ServingError, match="500"):
        serving.decode.complete("killed " + LONG, kv_transfer_params=found)
    wait_for(lambda: stats_of(collector, "decode").failures() != before)
    wait_for(lambda: is_as_vllm_counts(serving.decode, stats_of(collector, "decode")))
