"""The error tree: everything that kvxfer raises on purpose is a `KVXferError`.

A message says what is wrong, where, and what to do. What a peer did wrong is never raised to a caller: the collector
catches it once (`PeerError`) and counts it under the error's ``cause``.
"""

from typing import ClassVar


class KVXferError(Exception):
    """Base of all errors of kvxfer."""


class ConfigError(KVXferError, ValueError):
    """A setting (argument, flag, environment variable or file) that cannot be used."""


class StatsError(KVXferError, ValueError):
    """A declaration of stats, or values given to them, that cannot be used."""


class UnknownConnectorError(KVXferError, ValueError):
    """A connector that is not registered with the factory."""


class EndpointError(KVXferError, OSError):
    """An endpoint that cannot be bound or connected."""


class RoleError(KVXferError, RuntimeError):
    """A front-end object made in a process that publishes, or a worker's stats asked for in one that does not."""


class TraceError(KVXferError, ValueError):
    """A request trace that cannot be read; names the file and the line."""


class RecordError(KVXferError, ValueError):
    """A file of interval records that cannot be read; names the file and the line."""


class JournalError(KVXferError, OSError):
    """A journal that cannot be used: no journal, not to be read, or not to be written; names the file."""


class JournalHeldError(JournalError):
    """A journal that another collector writes."""


class PeerError(KVXferError):
    """A peer's bytes that are refused; ``cause`` is the name under which the collector counts it."""

    cause: ClassVar[str] = "undecodable"


class VersionError(PeerError):
    """A message of a wire version that this collector does not speak."""

    cause = "version"


class ImplausibleError(PeerError):
    """A report that decodes and cannot be true (a negative count, a sum outside its extremes)."""

    cause = "implausible"
