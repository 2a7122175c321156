"""A collector that somebody starts again whenever it dies: with the journal it had, at another port where it must.

Who starts it does not try again when a start fails, so it fails only for what a next one could not mend.
"""

import logging
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from kvxfer.collector import Collector
from kvxfer.config import CollectorConfig
from kvxfer.errors import EndpointError, JournalHeldError
from kvxfer.exporters.log import LogExporter
from kvxfer.exporters.warning import WarningExporter
from kvxfer.web import WebServer, parse_address

logger = logging.getLogger("kvxfer")

_HELD_SECONDS: Final = 10.0
# The one before may hold the journal until it has really ended.
_RETRY_SECONDS: Final = 0.1


def resume(config: CollectorConfig) -> Collector:
    """A collector that logs, at any free port where the one it is to have is taken; raises what `Collector` does."""
    deadline = time.monotonic() + _HELD_SECONDS
    while True:
        try:
            return Collector(config, [LogExporter(), WarningExporter(group_by=config.group_by)])
        except EndpointError as error:
            bare, _, port = (config.endpoint or "").rpartition(":")
            if not port.isdecimal():
                raise
            logger.warning("%s; any free port is used", error)
            config = msgspec.structs.replace(config, endpoint=f"{bare}:*")
        except JournalHeldError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_SECONDS)


def serve(collector: Collector, address: str) -> WebServer:
    """A server that runs, at any free port where the one it is to have is taken; raises what `WebServer` does."""
    try:
        return WebServer(collector, address).start()
    except EndpointError as error:
        logger.warning("%s; any free port is used", error)
        host, _ = parse_address(address)
        return WebServer(collector, f"[{host}]:0" if ":" in host else f"{host}:0").start()


def tell_prometheus(path: Path, server: WebServer, address: str, name: str) -> None:
    """Write the file (``file_sd_configs``) in which Prometheus finds the server; it never sees half of one.

    ``address``: that of this host, for a server that listens at all of them. Failing is logged.
    """
    host, _, _ = server.url.removeprefix("http://").rpartition(":")
    node = f"[{address}]" if ":" in address else address
    reachable = node if host in ("0.0.0.0", "[::]") else host  # noqa: S104 - nothing is bound here
    content = [{"targets": [f"{reachable}:{server.port}"], "labels": {"kvxfer_collector": name}}]
    whole = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        whole.write_bytes(msgspec.json.encode(content))
        whole.replace(path)
    except OSError as error:
        logger.error("%s: %s: Prometheus does not find this collector", path, error.strerror)  # noqa: TRY400 - it says all
