"""The growth of a collector's cost as a picture: a pure function of the figures that a run has written."""

from pathlib import Path
from typing import Any

from benchmarks.growth import SOURCES

PANELS = (
    ("cpu", "CPU per report (us)"),
    ("close_ms", "close of an interval (ms)"),
    ("source_kib", "memory of a source (KiB)"),
)


def draw(report: dict[str, Any], path: Path) -> None:
    """Write an SVG or PNG, as the name says; ImportError without matplotlib, KeyError without the figures of growth."""
    import matplotlib as mpl  # noqa: PLC0415 - for who draws only

    mpl.use("Agg")
    mpl.rcParams |= {"svg.hashsalt": "kvxfer", "svg.fonttype": "none"}  # the same figures make the same small file
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 3.2), layout="constrained")
    for axis, (name, title) in zip(axes, PANELS, strict=True):
        cases = [report["cases"][f"growth.sources_{sources}.{name}"] for sources in SOURCES]
        below = [case["median"] - min(case["values"]) for case in cases]
        above = [max(case["values"]) - case["median"] for case in cases]
        axis.errorbar(SOURCES, [case["median"] for case in cases], yerr=[below, above], marker="o", capsize=3)
        axis.set(xscale="log", xlabel="sources", title=title)
        if name == "cpu":
            axis.set_ylim(0)
        else:
            axis.set_yscale("log")
        axis.grid(alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
