"""The example with two vLLM engines prints what its docstring promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "vllm_disagg" / "disagg.py"


def test_disaggregated_serving_is_seen() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("prefill and decode serve")
    found = [re.search(r"Num successful transfers=(\d+).*engine=decode, role=kv_consumer", line) for line in lines]
    assert [each[1] for each in found if each] == ["8"]
    assert lines[-1] == "vLLM's own count of them: 8 transfers, 2097152 bytes"
