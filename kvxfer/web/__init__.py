"""What a collector shows over HTTP, with the standard library's server alone.

=====================  ===========================================================================
``/``                  the page: see `kvxfer.web.page`
``/events``            what it listens to
``/metrics``           Prometheus: see `kvxfer.exporters.prometheus`
``/healthz``           200 while the process answers
``/readyz``            200 while the collector collects and its journal is written, else 503 and why
``/api/v1/snapshot``   all since the beginning, as JSON: see `kvxfer.web.api`
``/api/v1/history``    closed intervals, as JSON
=====================  ===========================================================================

Nothing here is encrypted or asks who comes: it binds loopback unless told otherwise, where a proxy can do both.
"""

from kvxfer.web.address import DEFAULT_ADDRESS, parse_address
from kvxfer.web.messages import Request, Response, Route
from kvxfer.web.server import WebServer

__all__ = ["DEFAULT_ADDRESS", "Request", "Response", "Route", "WebServer", "parse_address"]
