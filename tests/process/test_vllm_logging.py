"""kvxfer's `KVConnectorLogging` within vLLM's own front end; needs vLLM."""

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm_logging.py"


@pytest.mark.vllm
@pytest.mark.timeout(300)
def test_vllms_stat_logger_logs_the_same_line_with_it_and_survives_a_payload_that_is_none() -> None:
    pytest.importorskip("vllm")
    done = subprocess.run([sys.executable, str(EXAMPLE)], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours, same, unreadable = done.stdout.splitlines()[-4:]
    assert theirs.startswith("vLLM:   KV Transfer metrics: Num successful transfers=2, Avg xfer time (ms)=1.5, ")
    assert ours.removeprefix("kvxfer: ") == theirs.removeprefix("vLLM:   ")
    assert same == "the same: True"
    assert unreadable == "of a payload that is none: vLLM raises TypeError, kvxfer logs '', with one warning"
    assert done.stderr.count("are not logged") == 1
