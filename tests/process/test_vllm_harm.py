"""Engines whose collector is absent, killed, frozen or none at all answer as without kvxfer, and end in time.

Each case has a decode engine of its own, with which it ends; the prefill engine has no kvxfer, and says what is right.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from workers import wait_until

from benchmarks.impostors import Endpoint
from benchmarks.vllm import BLOCKS, TOKENS, TRANSFERS, Answer, answer, pausable, prompts, running
from examples.vllm_disagg.engines import Engine, free_ports, nixl, write_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
CASES = ("killed", "frozen", "garbage", "malformed")
NONSENSE = "nonsense://x"
END = ("--shutdown-timeout", "30")  # without it vLLM kills its workers, and nothing could hang
PROMPTS = prompts(6)
END_SECONDS = 5.0
"""How much longer than one without kvxfer an engine may take to end: two waits of a second each, on a busy machine."""


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """All of them, stopped."""
    model = write_model(tmp_path_factory.mktemp("model"))
    with ExitStack() as opened:
        endpoints = {case: opened.enter_context(Endpoint(free_ports())) for case in CASES}
        names = {"prefill": ""} | {case: endpoint.name for case, endpoint in endpoints.items()} | {"nonsense": NONSENSE}
        made = {
            name: Engine(
                model,
                nixl("kv_producer" if name == "prefill" else "kv_consumer", name),
                {"KVXFER_ENDPOINT": endpoint},
                arguments=[*BLOCKS, *END],
            )
            for name, endpoint in names.items()
        }
        opened.enter_context(pausable(*made.values()))
        prefill = made.pop("prefill")
        with running(prefill):
            expected = [alone(prefill, prompt) for prompt in PROMPTS]
        yield SimpleNamespace(prefill=prefill, decode=made, endpoints=endpoints, expected=expected)


def alone(engine: Engine, prompt: str) -> Answer:
    return tuple(engine.complete(prompt, TOKENS, return_token_ids=True)["choices"][0]["token_ids"])


def one_by_one(serving: Any, case: str) -> Iterator[Answer]:
    return (answer(serving.prefill, serving.decode[case], prompt) for prompt in PROMPTS)


def answers(serving: Any, case: str) -> list[Answer]:
    """What it answers to all prompts, each with one transfer."""
    decode = serving.decode[case]
    before = decode.metric(TRANSFERS)
    found = list(one_by_one(serving, case))
    wait_until(lambda: decode.metric(TRANSFERS) >= before + len(PROMPTS))
    return found


def test_prompts_have_answers_of_their_own(serving: Any) -> None:
    assert len(set(serving.expected)) > 1


def test_an_engine_answers_while_its_collector_has_never_come_is_there_and_is_killed(serving: Any) -> None:
    endpoint, found = serving.endpoints["killed"], []
    with running(serving.prefill, serving.decode["killed"]), ThreadPoolExecutor(1) as pool:
        assert answers(serving, "killed") == serving.expected
        endpoint.be("live")
        endpoint.wait_until_heard()
        asking = pool.submit(lambda: [found.append(each) for each in one_by_one(serving, "killed")])
        wait_until(lambda: len(found) > 0)
        endpoint.clear()
        assert len(found) < len(PROMPTS), "it was to be killed in the middle"
        asking.result(120)
        assert found == serving.expected
        assert answers(serving, "killed") == serving.expected


def test_an_engine_answers_while_its_collector_is_frozen(serving: Any) -> None:
    endpoint = serving.endpoints["frozen"]
    endpoint.be("live")
    with running(serving.prefill, serving.decode["frozen"]):
        assert answers(serving, "frozen") == serving.expected
        endpoint.wait_until_heard()
        endpoint.freeze()
        assert answers(serving, "frozen") + answers(serving, "frozen") == 2 * serving.expected


@pytest.mark.parametrize("who", ["garbage", "malformed"])
def test_an_engine_answers_while_another_than_its_collector_is_there(serving: Any, who: str) -> None:
    endpoint = serving.endpoints[who]
    endpoint.be("live")
    with running(serving.prefill, serving.decode[who]):
        assert answers(serving, who) == serving.expected
        endpoint.wait_until_heard()
        endpoint.be(who)
        assert answers(serving, who) == serving.expected
        endpoint.wait_until_heard()
        assert answers(serving, who) == serving.expected


def test_an_engine_answers_whose_endpoint_is_none(serving: Any) -> None:
    engine = serving.decode["nonsense"]
    with running(serving.prefill, engine):
        assert answers(serving, "nonsense") == serving.expected
    assert (
        len(engine.lines("kvxfer cannot publish stats of NixlConnector: expected ipc://PATH or tcp://HOST:PORT")) == 1
    )


def test_engines_end_in_time_with_all_that_they_have_not_delivered(serving: Any) -> None:
    without = seconds_to_end(serving.prefill)
    seconds = {case: seconds_to_end(engine) for case, engine in serving.decode.items()}
    assert {case: took for case, took in seconds.items() if took > without + END_SECONDS} == {}, (without, seconds)
    assert not any(engine.lines("workers still running after grace period") for engine in serving.decode.values())


def seconds_to_end(engine: Engine) -> float:
    """How long all its processes run after a SIGTERM."""
    with running(engine):
        begun = time.monotonic()
        engine.process.terminate()
        wait_until(lambda: engine.process.poll() is not None and engine.process.pid not in groups_that_run())
        assert engine.process.returncode == 0
        return time.monotonic() - begun


def groups_that_run() -> set[int]:
    """The process groups of which something runs."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group, *_ = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        if state != "Z":
            found.add(int(group))
    return found
