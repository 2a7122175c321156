"""How things are configured: vLLM's KV transfer config, and what a collector takes. Values only; nothing is opened."""

import os
import re
import tempfile
import uuid
from hashlib import blake2s
from pathlib import Path
from typing import Any, Final

import msgspec

from kvxfer.errors import ConfigError

PRODUCER_ROLES: Final = ("kv_producer", "kv_both")
CONSUMER_ROLES: Final = ("kv_consumer", "kv_both")
ROLES: Final = ("kv_producer", "kv_consumer", "kv_both")


class KVTransferConfig(msgspec.Struct, kw_only=True):
    """What vLLM's ``--kv-transfer-config`` takes; of it kvxfer reads ``kv_connector`` and the module path.

    Raises `ConfigError` (a ValueError, as vLLM's) for an unsupported ``kv_role`` or a connector without one.
    """

    kv_connector: str | None = None
    engine_id: str | None = None
    kv_buffer_device: str | None = None
    kv_buffer_size: float = 1e9
    kv_role: str | None = None
    kv_rank: int | None = None
    kv_parallel_size: int = 1
    kv_ip: str = "127.0.0.1"
    kv_port: int = 14579
    kv_connector_extra_config: dict[str, Any] = msgspec.field(default_factory=dict)
    kv_connector_module_path: str | None = None
    enable_permute_local_kv: bool = False
    kv_load_failure_policy: str = "fail"

    def __post_init__(self) -> None:
        """Check the role and give the engine an id."""
        if self.engine_id is None:
            self.engine_id = str(uuid.uuid4())
        if self.kv_role is not None and self.kv_role not in ROLES:
            message = f"Unsupported kv_role: {self.kv_role}. Supported roles are {ROLES}"
            raise ConfigError(message)
        if self.kv_connector is not None and self.kv_role is None:
            message = f"Please specify kv_role when kv_connector is set, supported roles are {ROLES}"
            raise ConfigError(message)

    @classmethod
    def from_json(cls, text: str | bytes) -> "KVTransferConfig":
        """Read the flag's JSON; keys that only a newer vLLM knows are passed over. Raises `ConfigError`."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            message = f"the KV transfer config is not valid: {error}"
            raise ConfigError(message) from error

    @property
    def is_kv_transfer_instance(self) -> bool:
        """Whether a connector is configured."""
        return self.kv_connector is not None

    @property
    def is_kv_producer(self) -> bool:
        """Whether this instance produces KV."""
        return self.kv_connector is not None and self.kv_role in PRODUCER_ROLES

    @property
    def is_kv_consumer(self) -> bool:
        """Whether this instance consumes KV."""
        return self.kv_connector is not None and self.kv_role in CONSUMER_ROLES

    def get_from_extra_config(self, key: str, default: Any) -> Any:  # noqa: ANN401 - as vLLM's
        """One value of the connector's own config."""
        return self.kv_connector_extra_config.get(key, default)


class CollectorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a collector takes. Raises `ConfigError` for a value out of range.

    ``endpoint``: where it binds, None for `default_endpoint`. ``interval_seconds``: what one line covers, vLLM's 10.
    ``group_by``: the labels that form a group with the connector. ``max_groups``: groups beyond are one, whose labels
    read ``other``. ``max_source_views``: sources whose own numbers are kept (each a copy of the stats; the others
    count in their group alone). ``max_sources``: sources known at all, 0.6 kB each and with
    long labels more, on average 1 kB of them on the wire. ``silent_seconds``: without a
    report for so long a source is silent, an idle publisher sends one every 10 s; ``gone_seconds``: for so long, gone.
    ``journal``: the file in which totals and intervals outlive this process, None for none; intervals are kept in it
    for ``retention_seconds`` and as long as it has at most ``max_journal_bytes``.
    ``upstream``: the endpoint of a collector above, which is told each closed interval, merged per group;
    ``upstream_curve``: the directory of a worker's keys of that one, None for none.
    ``curve``: the directory of the keys; then nobody sends whose key is not authorized there. ``insecure``: bind beyond
    loopback without.
    """

    endpoint: str | None = None
    interval_seconds: float = 10.0
    group_by: tuple[str, ...] = ("engine", "role")
    max_groups: int = 1024
    max_source_views: int = 1024
    max_sources: int = 131_072
    silent_seconds: float = 30.0
    gone_seconds: float = 600.0
    journal: str | None = None
    retention_seconds: float = 7 * 86_400.0
    max_journal_bytes: int = 1 << 30
    upstream: str | None = None
    upstream_curve: str | None = None
    curve: str | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not 0.01 <= self.interval_seconds <= 86_400:  # noqa: PLR2004 - the message says them
            message = f"interval_seconds must lie between 0.01 and 86400, got {self.interval_seconds}"
            raise ConfigError(message)
        if self.max_source_views < 0 or self.max_sources < 1 or self.max_groups < 1:
            sizes = f"{self.max_source_views}, {self.max_sources}, {self.max_groups}"
            message = f"max_source_views >= 0, max_sources >= 1 and max_groups >= 1, got {sizes}"
            raise ConfigError(message)
        if not 0 < self.silent_seconds <= self.gone_seconds:
            message = f"0 < silent_seconds <= gone_seconds, got {self.silent_seconds}, {self.gone_seconds}"
            raise ConfigError(message)
        if not self.retention_seconds >= 0 or self.max_journal_bytes < 0:
            sizes = f"{self.retention_seconds}, {self.max_journal_bytes}"
            message = f"retention_seconds >= 0 and max_journal_bytes >= 0, got {sizes}"
            raise ConfigError(message)


def default_endpoint() -> str:
    """``KVXFER_ENDPOINT``, or `private_endpoint`."""
    return os.environ.get("KVXFER_ENDPOINT") or private_endpoint()


def default_curve() -> str | None:
    """The directory of a worker's keys: ``KVXFER_CURVE``, None for no CURVE."""
    return os.environ.get("KVXFER_CURVE") or None


def private_endpoint() -> str:
    """An ipc path under ``XDG_RUNTIME_DIR``, or in a directory of this user under the temporary one."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    directory = Path(runtime) / "kvxfer" if runtime else Path(tempfile.gettempdir()) / f"kvxfer-{os.getuid()}"
    return f"ipc://{directory / 'collector.ipc'}"


def default_journal(endpoint: str) -> str | None:
    """The journal of an endpoint, below ``XDG_STATE_HOME`` or ``~/.local/state``.

    ``tcp-127.0.0.1-5555.db``, or the name of the ipc path and a hash of all of it; None for a port that is any free
    one, since the next start has another.
    """
    if endpoint.endswith(":*"):
        return None
    state = os.environ.get("XDG_STATE_HOME", "")
    # The specification takes a relative path for none.
    directory = Path(state) if Path(state).is_absolute() else _home() / ".local" / "state"
    return str(directory / "kvxfer" / f"{_file_name(endpoint)}.db")


def _home() -> Path:
    """The home of this user; of one that has none the root, which takes no file of most."""
    home = Path(os.path.expanduser("~"))  # noqa: PTH111 - pathlib raises where there is none
    return home if home.is_absolute() else Path("/")


def _file_name(endpoint: str) -> str:
    kind, _, rest = endpoint.partition("://")
    if kind == "ipc":
        path = os.path.abspath(rest)  # noqa: PTH100 - links are not followed: the path is the endpoint's name
        kind, rest = Path(path).stem, blake2s(path.encode(), digest_size=4).hexdigest()
    return re.sub(r"[^\w.]+", "-", f"{kind}-{rest}", flags=re.ASCII)
