"""The alert rules, the dashboard and the docs name metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metad.config.parse import parse
from metad.monitor.facts import Facts
from metad.monitor.health import SERVING, Report
from metad.monitor.metrics import HubCollector, page
from metad.store.log_table import Row, State
from metad.system import counters

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "packaging" / "monitoring"
NAME = re.compile(r"metad_[a-z_]+")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of all metrics that a hub can show."""
    data = tmp_path_factory.mktemp("data")
    text = '[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:1"\ntls = "starttls"'
    config = parse(text, None, data, {})
    totals = {one.name: 1 for one in counters.HUB} | {"log_lines_dropped": 0}
    collector = {one.name: 1 for one in counters.COLLECTOR}
    now = {one.name: 0 for one in counters.OPEN}
    rows: list[Any] = [SimpleNamespace()]
    facts = Facts(totals, now, rows, collector, [Row(1, State.SEALED, 1, 2, 0, 9, 1, 5)])
    shown = page(HubCollector(lambda: (facts, Report(SERVING, [])), lambda: config, 0.0)).decode()
    return {line.split()[2] for line in shown.splitlines() if line.startswith("# TYPE")}


def test_the_page_is_whole(known: set[str]) -> None:
    assert len(known) > 25
    assert "metad_certificate_expiry_timestamp_seconds" in known


@pytest.mark.parametrize(
    "path", [*sorted(MONITORING.iterdir()), ROOT / "docs" / "monitoring.md"], ids=lambda p: p.name
)
def test_only_metrics_that_exist_are_named(path: Path, known: set[str]) -> None:
    named = set(NAME.findall(path.read_text()))
    assert named
    assert named - known == set()


def test_every_metric_is_documented(known: set[str]) -> None:
    documented = set(NAME.findall((ROOT / "docs" / "monitoring.md").read_text()))
    assert {one for one in known - documented if not one.startswith("metad_filter_")} == set()


def test_the_dashboard_has_a_panel_for_each_place() -> None:
    found = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in found["panels"]]
    assert len(places) == len(set(places)) > 10


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_takes_the_rules() -> None:
    rules = str(MONITORING / "metad.rules.yml")
    done = subprocess.run(["promtool", "check", "rules", rules], capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
