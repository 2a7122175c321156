"""Real vLLM engines on the CPU: a Llama of two layers with random weights, a tokenizer of bytes, one API server each.

An `Engine` is `python -m vllm.entrypoints.openai.api_server` in a process group of its own, with its own ports. It is
what serves KV in production but for its size: front end, engine core and workers are processes of their own.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final

START_SECONDS: Final = 420
ANSWER_SECONDS: Final = 300
STOP_SECONDS: Final = 60
BLOCK_TOKENS: Final = 32

CONFIG: Final = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 1024,
    "vocab_size": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def write_model(directory: Path) -> Path:
    """A model that vLLM loads without a network: its config, and a tokenizer of bytes and two special tokens."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # noqa: PLC0415 - comes with vLLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("</s>", special=True)])
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "config.json").write_text(json.dumps(CONFIG))
    fast = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(fast))
    return directory


def nixl(role: str, engine_id: str, **more: object) -> dict[str, Any]:
    """A KV transfer config of NIXL over the CPU's memory."""
    config = {"kv_connector": "NixlConnector", "kv_role": role, "engine_id": engine_id, "kv_buffer_device": "cpu"}
    return {**config, **more}


_ports = itertools.count(21_000 + os.getpid() % 900 * 10, 4)


def free_ports() -> int:
    """The first of four free ports in a row, below those that the kernel gives to others; each call has others."""
    while True:
        first = next(_ports)
        with contextlib.suppress(OSError), contextlib.ExitStack() as opened:
            for port in range(first, first + 4):
                opened.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


class ServingError(Exception):
    """An engine that does not start, or an answer that is none."""


class Engine:
    """One vLLM server; ``kv`` is its KV transfer config, ``environment`` is set on top of what a CPU needs."""

    def __init__(
        self,
        model: Path,
        kv: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
        *,
        tensor_parallel: int = 1,
        arguments: Iterable[str] = (),
    ) -> None:
        """Begin to start; `wait_until_ready` waits for it."""
        self.port = free_ports()
        self.log = model / f"engine-{kv['engine_id']}-{self.port}.log"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--served-model-name", "tiny", "--load-format", "dummy", "--dtype", "float32", "--enforce-eager"]
        command += ["--host", "127.0.0.1", "--port", str(self.port), "--max-model-len", "1024", "--max-num-seqs", "8"]
        command += ["--block-size", str(BLOCK_TOKENS), "--tensor-parallel-size", str(tensor_parallel)]
        command += ["--no-enable-prefix-caching", "--kv-transfer-config", json.dumps(kv), *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | self._needs(tensor_parallel) | dict(environment or {}),
            )

    def _needs(self, tensor_parallel: int) -> dict[str, str]:
        return {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind" if tensor_parallel == 1 else "0|1",
            "VLLM_HOST_IP": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.port + 1),
            "VLLM_LOG_STATS_INTERVAL": "1",
            "OMP_NUM_THREADS": "1",
            "TORCHDYNAMO_DISABLE": "1",  # the first request would wait for a C++ compiler
        }

    def wait_until_ready(self) -> None:
        """Wait until it serves; `ServingError`, with the end of its log, where it ends or does not."""
        deadline = time.monotonic() + START_SECONDS
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self.ask("GET", "/health")
                return
            threading.Event().wait(0.2)
        message = f"the engine did not start:\n{self.log.read_text()[-6000:]}"
        raise ServingError(message)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> bytes:
        """What it answers; `ServingError` unless that is a success."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_SECONDS)
        with contextlib.closing(connection):
            connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            text = answer.read()
        if answer.status != HTTPStatus.OK:
            message = f"{answer.status}: {text[:500]!r}"
            raise ServingError(message)
        return text

    def complete(self, prompt: str, max_tokens: int = 4, **more: object) -> dict[str, Any]:
        """One request, greedy; the whole answer."""
        body = {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        found: dict[str, Any] = json.loads(self.ask("POST", "/v1/completions", body | more))
        return found

    def metrics(self) -> dict[str, float]:
        """vLLM's own metrics of now by name, each summed over its label sets."""
        found: dict[str, float] = {}
        for line in self.ask("GET", "/metrics").decode().splitlines():
            if not line.startswith("#"):
                name = re.split("[{ ]", line, maxsplit=1)[0]
                found[name] = found.get(name, 0.0) + float(line.rpartition(" ")[2])
        return found

    def metric(self, name: str) -> float:
        """One of them; `ServingError` where there is none of this name."""
        found = self.metrics()
        if name not in found:
            message = f"vLLM exports no {name}"
            raise ServingError(message)
        return found[name]

    def lines(self, text: str) -> list[str]:
        """What it logged with this text in it."""
        return [line for line in self.log.read_text().splitlines() if text in line]

    def stop(self) -> int | None:
        """End it as an operator does, by SIGTERM; its exit code. Whatever is left of it then is killed."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_SECONDS)
        code = self.process.poll()
        self.kill()
        return code

    def kill(self) -> None:
        """Kill all processes of the engine."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_SECONDS)


@contextlib.contextmanager
def engines(*starting: Engine) -> Iterator[None]:
    """Wait until all of them serve; none outlives the block."""
    try:
        for engine in starting:
            engine.wait_until_ready()
        yield
    finally:
        for engine in starting:
            engine.stop()


def prefill_of(prefill: Engine, prompt: str) -> dict[str, Any]:
    """Let it compute the prompt's KV and keep it for another; the parameters by which that one finds it."""
    asked = {"do_remote_decode": True, "do_remote_prefill": False}
    nobody = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
    answer = prefill.complete(prompt, max_tokens=1, kv_transfer_params=asked | nobody)
    found: dict[str, Any] = answer["kv_transfer_params"]
    return found


def hand_over(prefill: Engine, decode: Engine, prompt: str) -> str:
    """Prefill on one engine, decode on the other: one transfer per rank; the text."""
    answer = decode.complete(prompt, kv_transfer_params=prefill_of(prefill, prompt))
    text: str = answer["choices"][0]["text"]
    return text
