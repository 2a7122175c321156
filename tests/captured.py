"""What lies beside a developer's checkout and in no user's clone: captured payloads, and an hour of a real service."""

import json
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
PAYLOADS = SHARED / "payloads"
TRACE = SHARED / "traces" / "conversation_trace.jsonl"
NAMES = (
    "nixl",
    "multi",
    "offloading",
    "made_nixl",
    "made_nixl_large",
    "made_mooncake",
    "made_mooncake_store",
    "made_offloading",
    "made_simple_cpu_offload",
    "made_hisparse",
    "made_hf3fs",
    "made_multi",
)
# More values than a distribution keeps one by one: there its percentiles are within 1.1 %.
ESTIMATED = {"made_nixl_large": {"P90 xfer time (ms)", "P90 post time (ms)"}}


def expected(name: str) -> dict[str, Any]:
    """What vLLM's own classes make of a file of payloads; skips where there are none."""
    if not PAYLOADS.exists():
        pytest.skip("the captured payloads are not beside this checkout")
    file = "made_expected.json" if name.startswith("made_") else "expected.json"
    found: dict[str, Any] = json.loads((PAYLOADS / file).read_text())[name]
    return found


def counted_by_hand() -> tuple[int, int, int]:
    """Requests, transfers and blocks that the trace implies, by other means than ours; skips where there is none."""
    if not TRACE.exists():
        pytest.skip("the Mooncake trace is not beside this checkout")
    seen: set[int] = set()
    requests = transfers = 0
    for line in TRACE.read_text().splitlines():
        new = set(json.loads(line)["hash_ids"]) - seen
        seen |= new
        requests += 1
        transfers += bool(new)
    return requests, transfers, len(seen)
