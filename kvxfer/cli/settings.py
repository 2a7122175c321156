"""Where a setting of ``kvxfer collect`` comes from: flag, else environment, else file, else default."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, get_args

import msgspec

from kvxfer.config import CollectorConfig, default_endpoint, default_journal
from kvxfer.errors import ConfigError
from kvxfer.exporters.prometheus import Names
from kvxfer.pace import SLOW_FACTOR

_DEFAULTS: Final = CollectorConfig()
DAY_SECONDS: Final = 86_400.0

_LISTS: Final = ("group_by", "generic")

NO_JOURNAL: Final = "none"
"""Instead of a path: what was collected is in memory alone."""


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings of a collector; each is a flag, ``KVXFER_<NAME>`` and a key of the file."""

    endpoint: str | None = None
    interval: float = _DEFAULTS.interval_seconds
    jsonl: str | None = None
    per_rank: bool = False
    slow_factor: float = SLOW_FACTOR
    group_by: tuple[str, ...] = _DEFAULTS.group_by
    generic: tuple[str, ...] = ()
    """Connectors whose classes are not here, to be read by the form of their payloads."""
    journal: str | None = None
    """A path, `NO_JOURNAL`, or None for that of the endpoint."""
    retention: float = _DEFAULTS.retention_seconds / DAY_SECONDS
    upstream: str | None = None
    upstream_curve: str | None = None
    curve: str | None = None
    insecure: bool = False
    otlp: str | None = None
    http: str | None = None
    metric_names: Names = "kvxfer"
    metrics_per_source: Annotated[int, msgspec.Meta(ge=0)] = 0


def read_settings(flags: Mapping[str, Any], config: str | None) -> Settings:
    """Merge the three; a value that does not fit is a `ConfigError` that names where it stands."""
    chosen = (_from_file(Path(config)) if config else {}) | _from_environment() | _from_flags(flags)
    return Settings(**chosen)


def journal_of(settings: Settings) -> str | None:
    """The journal that these settings lead to, None for none."""
    if settings.journal is None:
        return default_journal(settings.endpoint or default_endpoint())
    return None if settings.journal == NO_JOURNAL else settings.journal


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in flags.items() if value is not None}
    return {name: _converted(name, value, f"--{name.replace('_', '-')}") for name, value in given.items()}


def _from_environment() -> dict[str, Any]:
    names = {name: f"KVXFER_{name.upper()}" for name in Settings.__struct_fields__}
    found = {name: os.environ[variable] for name, variable in names.items() if variable in os.environ}
    return {name: _converted(name, value, names[name]) for name, value in found.items()}


def _from_file(path: Path) -> dict[str, Any]:
    try:
        content = msgspec.toml.decode(path.read_bytes())
    except (OSError, ImportError, ValueError) as error:
        message = f"{path}: {error}: name a readable TOML file"
        raise ConfigError(message) from error
    unknown = sorted(set(content) - set(Settings.__struct_fields__))
    if unknown:
        message = f"{path}: no setting is called {unknown[0]!r}: use {', '.join(Settings.__struct_fields__)}"
        raise ConfigError(message)
    return {name: _converted(name, value, f"{path}: {name}") for name, value in content.items()}


def _converted(name: str, value: Any, where: str) -> Any:  # noqa: ANN401 - any setting
    if name in _LISTS and isinstance(value, str):
        value = [part for part in value.split(",") if part]
    try:
        settings = msgspec.convert({name: value}, Settings, strict=False)
    except msgspec.ValidationError as error:
        said = f"expected {' or '.join(get_args(Names))}" if name == "metric_names" else error
        message = f"{where}: {said}, got {value!r}"
        raise ConfigError(message) from error
    return getattr(settings, name)
