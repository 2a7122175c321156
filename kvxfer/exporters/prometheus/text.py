"""Text: Prometheus' exposition format 0.0.4, and OpenMetrics 1.0, which differ in a few words.

OpenMetrics names a counter without ``_total``, has units and infos, and an end. Numbers are written as Go writes them:
boundaries are labels, and those that Prometheus makes of protobuf must be the same.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

from kvxfer.exporters.prometheus.classic import cumulative
from kvxfer.exporters.prometheus.families import Counted, Family, Kind, Labels, Measured, Value

Exposed = Iterable[tuple[Family, dict[Labels, Value]]]
"""Families and their series."""

_SAMPLE_SUFFIX = {Kind.COUNTER: "_total", Kind.INFO: "_info"}
# Go writes a float with an exponent from here on, Python from 1e16.
_GO_EXPONENT = 1e6
_PYTHON_EXPONENT = 1e16


def as_text(families: Exposed) -> bytes:
    """Families in the format 0.0.4, which every Prometheus reads."""
    lines = (line for family, series in families for line in _family_lines(family, series, is_openmetrics=False))
    return "".join(lines).encode()


def as_openmetrics(families: Exposed) -> bytes:
    """Families in OpenMetrics 1.0."""
    lines = (line for family, series in families for line in _family_lines(family, series, is_openmetrics=True))
    return ("".join(lines) + "# EOF\n").encode()


def _family_lines(family: Family, series: dict[Labels, Value], *, is_openmetrics: bool) -> Iterator[str]:
    sample = family.name + _SAMPLE_SUFFIX.get(family.kind, "")
    name = family.name if is_openmetrics else sample
    kind = "gauge" if family.kind is Kind.INFO and not is_openmetrics else family.kind.value
    about = family.help.replace("\\", "\\\\").replace("\n", "\\n")
    yield f"# HELP {name} {_quoted(family.help) if is_openmetrics else about}\n# TYPE {name} {kind}\n"
    if is_openmetrics and family.unit:
        yield f"# UNIT {name} {family.unit}\n"
    for labels, value in series.items():
        yield from _sample_lines(family, sample, _label_text(labels), value)


def _sample_lines(family: Family, sample: str, labels: str, value: Value) -> Iterator[str]:
    inside = f"{{{labels}}}" if labels else ""
    if isinstance(value, Measured):
        start = f"{sample}_bucket{{{labels}," if labels else f"{sample}_bucket{{"
        counts = cumulative(value.histogram, family.boundaries)
        yield from (
            f"{start}{le}{count}\n" for le, count in zip(_boundary_texts(family.boundaries), counts, strict=True)
        )
        yield f'{start}le="+Inf"}} {value.histogram.count}\n'
        yield f"{sample}_sum{inside} {number(value.sum)}\n{sample}_count{inside} {value.histogram.count}\n"
    elif isinstance(value, Counted):
        yield f"{sample}_sum{inside} {number(value.sum)}\n{sample}_count{inside} {value.num_values}\n"
    else:
        yield f"{sample}{inside} {number(value)}\n"


@lru_cache(maxsize=64)
def _boundary_texts(boundaries: tuple[float, ...]) -> tuple[str, ...]:
    return tuple(f'le="{number(float(boundary))}"}} ' for boundary in boundaries)


def _label_text(labels: Labels) -> str:
    return ",".join(f'{name}="{_quoted(value)}"' for name, value in labels)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def number(value: float) -> str:
    """A number as Go writes it: ``1.0``, ``2.5e-05``, ``1.048576e+06``, ``+Inf``; an int with all its digits."""
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'+' if value > 0 else '-'}Inf"
    text = repr(value)
    if _GO_EXPONENT <= abs(value) < _PYTHON_EXPONENT:
        mantissa, _, exponent = f"{value:.17e}".partition("e")
        digits = text.replace("-", "").replace(".", "").rstrip("0")
        mantissa = f"{digits[0]}.{digits[1:]}".rstrip(".")
        return f"{'-' if value < 0 else ''}{mantissa}e{exponent}"
    return text
