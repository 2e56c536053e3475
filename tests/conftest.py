"""For every test: helpers can be imported, the longest run first, and results of campaigns are
shown."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from tests.support import sizes

# Directories by the duration of their tests, the longest first, so that no process is left with a
# long test at the end.  A campaign's tests go to any free process; those of any other file share
# expensive fixtures, such as a hub, and stay together and in order.
CAMPAIGNS = ("crash", "model", "sim", "fault", "mutants", "fuzz")
AFTER = ("pages", "packaging", "tools", "testing", "perf", "filters")
FIRST = (*CAMPAIGNS, "processes", "e2e", *AFTER)
COUNTED = ("passed", "failed", "error")  # for tools/test, which adds its other checks
LINES_OF_A_FAILURE = 8

# On a busy machine the making of inputs may stand still for seconds.
settings.register_profile("metad", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("metad")

# A background job of a shell ignores SIGINT, and so would every program that it starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    return f"METAD_TEST_SEED={sizes.SEED} METAD_TEST_SCALE={os.environ.get('METAD_TEST_SCALE', '')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*FIRST, item.path.parent.name).index(item.path.parent.name))
    if is_choice(config):
        return
    later = {
        item
        for item in items
        if item.get_closest_marker("long") and not sizes.is_drawn(item.nodeid)
    }
    config.hook.pytest_deselected(items=list(later))
    items[:] = [item for item in items if item not in later]


def is_choice(config: pytest.Config) -> bool:
    """Whether a developer named files, tests or words: then every long test among them runs."""
    files = [name.partition("::")[0] for name in config.args]
    return bool(config.option.keyword) or any(name.endswith(".py") for name in files)


def pytest_collection_finish() -> None:
    """The tests stay until the end: the garbage collector need not look at them each time."""
    gc.freeze()


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """The unit given to a process: a test of a campaign, or a whole other file."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return nodeid if Path(file).parent.name in CAMPAIGNS else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Scheduling:
    config.option.loadscopereorder = False  # the order is ours
    return Scheduling(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item) -> None:
    """The results of a campaign are attached to its report, in whatever process it ran."""
    item.user_properties += sizes.taken()


def ending(report: pytest.TestReport | pytest.CollectReport) -> list[str]:
    """What tools/test shows once more at its end: the name of a test that failed, and why."""
    return [report.nodeid, *report.longreprtext.splitlines()[-LINES_OF_A_FAILURE:]]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [one for group in terminalreporter.stats.values() for one in group]
    calls = [one for one in reports if getattr(one, "when", None) == "call"]
    if path := os.environ.get("METAD_TEST_COUNTS"):
        passed, *kinds = (terminalreporter.stats.get(kind, []) for kind in COUNTED)
        failed = [report for kind in kinds for report in kind]
        lines = [f"{len(passed)} {len(failed)}", *(line for one in failed for line in ending(one))]
        Path(path).write_text("\n".join([*lines, ""]), encoding="utf-8")
    lines = sizes.summary(said for one in calls for said in one.user_properties)
    if lines:
        terminalreporter.section("reached")
        for line in lines:
            terminalreporter.write_line(line)
