"""Names that Prometheus takes, out of those of connectors, fields, keys and labels; anybody may have chosen them."""

import re
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2s
from typing import Final

from kvxfer.exporters.prometheus.families import Labels
from kvxfer.fields import UNIT_WORDS

MAX_VALUE: Final = 200
"""Characters of a label's value; of a longer one the end is a hash, so that no two become one."""

MAX_NAME: Final = 200
MAX_LABELS: Final = 32
"""Labels of one series; a source may have more, the first by name are told."""

_RESERVED: Final = ("le", "quantile")


@lru_cache(maxsize=256)
def snake(connector: str) -> str:
    """``NixlPullConnector`` -> ``nixl_pull``."""
    bare = connector.removesuffix("Connector") or connector
    parted = re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3_\2\4", bare)
    return valid_name(parted.lower())


def valid_name(name: str) -> str:
    """A part of a metric's name: letters of ASCII, digits and single underscores."""
    return re.sub(r"[^a-zA-Z0-9]+", "_", name).strip("_")[:MAX_NAME] or "_"


def unit_word(unit: str) -> str:
    """The word of a unit of UCUM, empty for a count: ``seconds``."""
    return UNIT_WORDS.get(unit, "")


def with_unit(name: str, word: str) -> str:
    """The name, ending with the word of its unit."""
    return name if not word or name.endswith(word) else f"{name}_{word}"


def labels_of(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Labels:
    """Our labels, and theirs under valid names that are none of ours; an empty value is none, as everywhere."""
    found = {name: _bounded(value) for name, value in ours.items() if value}
    for name, value in sorted(theirs.items())[:MAX_LABELS]:
        valid = _label_name(name)
        while valid in found:
            valid = f"label_{valid}"
        if value:
            found[valid] = _bounded(value)
    return tuple(found.items())


@lru_cache(maxsize=256)
def _label_name(name: str) -> str:
    valid = re.sub(r"[^a-zA-Z0-9_]", "_", name)[:MAX_NAME]
    is_free = valid and not valid[0].isdigit() and not valid.startswith("__") and valid not in _RESERVED
    return valid if is_free else f"label_{valid}"


def _bounded(value: str) -> str:
    # No format carries half a surrogate pair.
    text = value if value.isascii() else value.encode(errors="replace").decode()
    if len(text) <= MAX_VALUE:
        return text
    return f"{text[: MAX_VALUE - 17]}~{blake2s(text.encode(), digest_size=8).hexdigest()}"
