"""For every test: helpers can be imported, the longest come first, what was reached is shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import sizes

# Directories whose tests take long: with several at work, nobody waits for one of them at last.
LONG = ("crash", "model", "fault", "mutants", "fuzz")
COUNTED = ("passed", "failed", "error")  # for tools/test, which adds its other checks


def pytest_report_header() -> str:
    return f"METAD_TEST_SEED={sizes.SEED} METAD_TEST_SCALE={os.environ.get('METAD_TEST_SCALE', '')}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name not in LONG)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """What a test reached goes with its report, from whatever process it ran in."""
    item.user_properties += sizes.taken()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for group in terminalreporter.stats.values() for one in group]
    calls = [one for one in reports if getattr(one, "when", None) == "call"]
    if path := os.environ.get("METAD_TEST_COUNTS"):
        passed, *failed = (terminalreporter.stats.get(kind, []) for kind in COUNTED)
        Path(path).write_text(f"{len(passed)} {sum(map(len, failed))}\n", encoding="ascii")
    lines = sizes.summary(said for one in calls for said in one.user_properties)
    if lines:
        terminalreporter.section("reached")
        for line in lines:
            terminalreporter.write_line(line)
