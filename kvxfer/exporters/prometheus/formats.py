"""The formats that a scrape can get, and which of them it asks for."""

from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from kvxfer.exporters.prometheus.protobuf import as_protobuf
from kvxfer.exporters.prometheus.text import Exposed, as_openmetrics, as_text


class Format(NamedTuple):
    """A format: what it is called, and how it is written."""

    content_type: str
    write: Callable[[Exposed], bytes]


TEXT: Final = Format("text/plain; version=0.0.4; charset=utf-8", as_text)
OPENMETRICS: Final = Format("application/openmetrics-text; version=1.0.0; charset=utf-8", as_openmetrics)
PROTOBUF: Final = Format(
    "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited", as_protobuf
)

_OPENMETRICS_VERSIONS: Final = ("", "1.0.0", "0.0.1")  # what was of 0.0.1 is of 1.0.0 too


def choose(accept: str) -> Format:
    """The format that an Accept header likes best, text where it likes none of them.

    Protobuf is given to those alone who name it, message and encoding too: without its native histograms switched on
    a Prometheus takes it for an error.
    """
    liked = [(quality, rank, offered) for quality, rank, offered in _offers(accept) if quality > 0]
    return max(liked, key=lambda offer: offer[:2])[2] if liked else TEXT


def _offers(accept: str) -> Iterator[tuple[float, int, Format]]:
    """Quality, how good we think it is, and the format of each media range that is one of ours."""
    for media_range in accept.split(","):
        media, *parameters = (part.strip().lower() for part in media_range.split(";"))
        given = dict(_pair(parameter) for parameter in parameters)
        quality = _quality(given.get("q", "1"))
        if media == "application/vnd.google.protobuf":
            wanted = (given.get("proto"), given.get("encoding"))
            if wanted == ("io.prometheus.client.metricfamily", "delimited"):
                yield quality, 2, PROTOBUF
        elif media == "application/openmetrics-text" and given.get("version", "") in _OPENMETRICS_VERSIONS:
            yield quality, 1, OPENMETRICS
        elif media in ("text/plain", "text/*", "*/*") and given.get("version", "0.0.4") == "0.0.4":
            yield quality, 0, TEXT


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip(), value.strip().strip('"')


def _quality(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
