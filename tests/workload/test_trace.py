"""What a trace implies, counted here by other means; and how a broken one is named."""

from itertools import islice
from pathlib import Path

import pytest
from captured import TRACE, counted_by_hand

from kvxfer.errors import TraceError
from kvxfer.workload.synthetic import synthetic_requests
from kvxfer.workload.trace import Request, plan_transfers, read_trace

GOOD = '{"timestamp": 5, "input_length": 9, "output_length": 1, "hash_ids": [1, 2]}'


def test_the_conversation_trace_moves_each_block_once() -> None:
    wanted = counted_by_hand()
    planned = list(plan_transfers(read_trace(TRACE)))
    blocks = [block for transfer in planned for block in transfer.blocks]
    assert len(blocks) == len(set(blocks))
    by_hand = (len(planned), sum(1 for transfer in planned if transfer.blocks), len(blocks))
    assert by_hand == wanted == (12031, 11913, 182790)


def test_a_request_moves_what_no_request_before_it_had() -> None:
    requests = [Request(0, 1, 1, (1, 2)), Request(500, 1, 1, (1, 2, 3, 3)), Request(900, 1, 1, (3, 1))]
    planned = [(transfer.at_seconds, transfer.blocks) for transfer in plan_transfers(requests)]
    assert planned == [(0.0, (1, 2)), (0.5, (3,)), (0.9, ())]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("not json", "malformed"),
        ('{"timestamp": 5}', "input_length"),
        ("[1, 2]", "object"),
        (GOOD.replace("5", "-5"), "timestamp"),
        (GOOD.replace("[1, 2]", '["a"]'), "hash_ids"),
        (GOOD[:-1], "truncated"),
    ],
)
def test_a_broken_line_is_named_with_its_number(tmp_path: Path, line: str, said: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(TraceError, match=said) as caught:
        list(read_trace(trace))
    assert str(caught.value).startswith(f"{trace}:3: ")


def test_a_line_that_is_no_text_is_named_with_its_number(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(GOOD.encode() + b'\n{"timestamp": 1, "\xff\xfe": 2}\n')
    with pytest.raises(TraceError, match=r"trace\.jsonl:2: "):
        list(read_trace(trace))


def test_an_unreadable_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.jsonl: No such file"):
        list(read_trace(tmp_path / "nowhere.jsonl"))


def test_made_up_requests_are_the_same_for_the_same_seed_and_reuse_prefixes() -> None:
    first, again = (list(islice(synthetic_requests(seed), 200)) for seed in (1, 1))
    assert first == again
    assert first != list(islice(synthetic_requests(2), 200))
    moved = sum(len(transfer.blocks) for transfer in plan_transfers(first))
    assert moved < sum(len(request.hash_ids) for request in first)
