"""vLLM's KV transfer config, what a collector takes, and where it listens by default."""

import json
import re
from pathlib import Path

import pytest

from kvxfer.config import CollectorConfig, KVTransferConfig, default_endpoint, default_journal
from kvxfer.errors import ConfigError

# Every key of vLLM 0.33's flag.
FLAG = {
    "kv_connector": "NixlConnector",
    "engine_id": "decode-0",
    "kv_buffer_device": "cpu",
    "kv_buffer_size": 5e8,
    "kv_role": "kv_both",
    "kv_rank": 1,
    "kv_parallel_size": 2,
    "kv_ip": "10.0.0.1",
    "kv_port": 14580,
    "kv_connector_extra_config": {"backends": ["UCX"], "nested": {"a": 1}},
    "kv_connector_module_path": "my.module",
    "enable_permute_local_kv": True,
    "kv_load_failure_policy": "recompute",
}


def test_the_flag_of_vllm_is_taken_with_all_its_keys() -> None:
    config = KVTransferConfig.from_json(json.dumps(FLAG))
    assert {key: getattr(config, key) for key in FLAG} == FLAG
    assert config.get_from_extra_config("backends", None) == ["UCX"]
    assert config.get_from_extra_config("absent", 7) == 7


def test_keys_that_only_a_newer_vllm_knows_are_passed_over() -> None:
    assert KVTransferConfig.from_json(json.dumps(FLAG | {"newer": {"a": 1}})).kv_rank == 1


def test_every_engine_has_an_id_of_its_own() -> None:
    one, other = KVTransferConfig(), KVTransferConfig()
    assert one.engine_id
    assert one.engine_id != other.engine_id


@pytest.mark.parametrize(
    ("role", "producer", "consumer"),
    [("kv_producer", True, False), ("kv_consumer", False, True), ("kv_both", True, True)],
)
def test_a_role_says_what_an_instance_does(role: str, producer: bool, consumer: bool) -> None:  # noqa: FBT001
    config = KVTransferConfig(kv_connector="NixlConnector", kv_role=role)
    assert (config.is_kv_producer, config.is_kv_consumer) == (producer, consumer)
    assert config.is_kv_transfer_instance
    idle = KVTransferConfig(kv_role=role)
    assert (idle.is_kv_producer, idle.is_kv_consumer, idle.is_kv_transfer_instance) == (False, False, False)


def test_a_role_that_is_none_is_an_error_as_vllms() -> None:
    with pytest.raises(
        ValueError, match=r"^Unsupported kv_role: kv_none\. Supported roles are \('kv_producer', "
    ) as said:
        KVTransferConfig(kv_role="kv_none")
    assert isinstance(said.value, ConfigError)
    with pytest.raises(ValueError, match="Unsupported kv_role: kv_none"):
        KVTransferConfig.from_json('{"kv_role": "kv_none"}')


def test_a_connector_without_a_role_is_an_error_as_vllms() -> None:
    with pytest.raises(ValueError, match="Please specify kv_role when kv_connector is set"):
        KVTransferConfig(kv_connector="NixlConnector")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"kv_port": "high"}', '{"kv_connector_extra_config": 3}', b"\xff", b'{"kv_ip": "\xff"}']
)
def test_a_flag_that_is_no_config_is_said(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="the KV transfer config is not valid: "):
        KVTransferConfig.from_json(text)


@pytest.mark.parametrize("seconds", [0.01, 10, 86_400])
def test_an_interval_may_last_from_a_hundredth_of_a_second_to_a_day(seconds: float) -> None:
    assert CollectorConfig(interval_seconds=seconds).interval_seconds == seconds


@pytest.mark.parametrize("seconds", [0, -1, 0.009, 86_401, float("nan"), float("inf")])
def test_an_interval_of_another_length_is_said(seconds: float) -> None:
    with pytest.raises(ConfigError, match=f"interval_seconds must lie between 0.01 and 86400, got {seconds}"):
        CollectorConfig(interval_seconds=seconds)


def test_a_collector_knows_at_least_one_source_and_may_view_none() -> None:
    assert CollectorConfig(max_source_views=0, max_sources=1).max_sources == 1
    for views, sources in ((-1, 1), (0, 0)):
        with pytest.raises(
            ConfigError, match=f"max_source_views >= 0, max_sources >= 1 and max_groups >= 1, got {views}, {sources}"
        ):
            CollectorConfig(max_source_views=views, max_sources=sources)


def test_a_collectors_defaults_are_vllms_interval_and_groups_by_engine_and_role() -> None:
    config = CollectorConfig()
    assert (config.interval_seconds, config.group_by, config.max_source_views) == (10.0, ("engine", "role"), 1024)


def test_the_default_endpoint_is_the_environments_else_a_private_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVXFER_ENDPOINT", "tcp://127.0.0.1:5555")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_endpoint() == "tcp://127.0.0.1:5555"
    monkeypatch.delenv("KVXFER_ENDPOINT")
    assert default_endpoint() == f"ipc://{tmp_path}/kvxfer/collector.ipc"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("os.getuid", lambda: 4242)
    assert default_endpoint() == f"ipc://{tmp_path}/kvxfer-4242/collector.ipc"


def test_each_endpoint_has_a_journal_of_its_own_in_the_state_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert default_journal("tcp://127.0.0.1:5555") == "/state/kvxfer/tcp-127.0.0.1-5555.db"
    assert default_journal("tcp://[::1]:5555") == "/state/kvxfer/tcp-1-5555.db"
    named = default_journal("ipc:///run/kvxfer/collector.ipc") or ""
    assert re.fullmatch(r"/state/kvxfer/collector-[0-9a-f]{8}\.db", named)
    assert named == default_journal("ipc:///run/../run/kvxfer/collector.ipc")
    others = {default_journal(f"ipc:///run/{name}/collector.ipc") for name in "ab"}
    assert len(others) == 2
    assert default_journal("tcp://127.0.0.1:*") is None


@pytest.mark.parametrize("state", ["", "relative"])
def test_without_a_state_home_journals_are_in_the_home_and_without_that_in_the_root(
    state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", state)
    monkeypatch.setenv("HOME", "/home/me")
    assert default_journal("tcp://h:1") == "/home/me/.local/state/kvxfer/tcp-h-1.db"
    monkeypatch.setenv("HOME", "")
    assert default_journal("tcp://h:1") == "/.local/state/kvxfer/tcp-h-1.db"
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # a user id that has no entry
    assert default_journal("tcp://h:1") == "/.local/state/kvxfer/tcp-h-1.db"


@pytest.mark.parametrize("changes", [{"retention_seconds": -1.0}, {"retention_seconds": float("nan")}])
def test_a_retention_that_is_none_is_said(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="retention_seconds >= 0 and max_journal_bytes >= 0, got "):
        CollectorConfig(**changes)
