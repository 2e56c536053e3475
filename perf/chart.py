"""Charts as SVG and PNG, by matplotlib if it is installed (`sh tools/venv perf`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def axes_of(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with this many panels, one below another; without matplotlib, panels that draw
    nothing."""
    try:
        import matplotlib as mpl
    except ImportError:
        return None, [_Nothing()] * count
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "metad"  # the same figures make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(count, 1, figsize=(width, height * count), squeeze=False)
    return figure, [row[0] for row in axes]


class _Nothing:
    def __getattr__(self, name: str) -> Any:
        return lambda *_, **__: None


def save(figure: Any, path: Path) -> list[str]:
    """Save beside `path`, with its name.  Returns the names of the files made."""
    if figure is None:
        return ["(no chart: matplotlib is not installed)"]
    figure.tight_layout()
    made = []
    for suffix in (".svg", ".png"):
        picture = path.with_suffix(suffix)
        figure.savefig(picture, dpi=110, metadata={"Date": None} if suffix == ".svg" else None)
        made.append(picture.name)
    return made
