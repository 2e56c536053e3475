"""Inserts the tables of a run into docs/performance.md between <!-- NAME --> and <!-- /NAME -->."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def put(name: str, text: str, page: Path = PAGE) -> None:
    """Replaces the present text.  Raises ValueError if the page has no such place, or several."""
    place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    changed, count = place.subn(lambda found: f"{found[1]}{text}\n{found[2]}", page.read_text())
    if count != 1:
        raise ValueError(f"{page.name} has {count} places called {name}")
    page.write_text(changed)


def picture(names: list[str]) -> str:
    """The first SVG of these, in perf/results/, for the page; "" if there is none."""
    made = [name for name in names if name.endswith(".svg")]
    return f"\n\n![chart](../perf/results/{made[0]})" if made else ""
