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
from metad.store.log_table import LogState, Row
from metad.system import counters
from metad.system.histograms import HISTOGRAMS, Counts, Shape
from metad.system.node_standing import Standing

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "packaging" / "monitoring"
NAME = re.compile(r"metad_[a-z_]+")


def counts(shape: Shape) -> Counts:
    return Counts((0,) * len(shape.bounds) + (1,), 1)


@pytest.fixture(scope="module")
def exposition(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All metrics that a hub can show."""
    data = tmp_path_factory.mktemp("data")
    text = '[[listen]]\nprotocol = "smtp"\naddress = "127.0.0.1:1"\ntls = "starttls"'
    config = parse(text, None, data, {})
    totals = {one.name: 1 for one in counters.HUB} | {"log_lines_dropped": 0}
    collector = {one.name: 1 for one in counters.COLLECTOR}
    now = {one.name: 0 for one in counters.OPEN}
    rows: list[Any] = [SimpleNamespace()]
    facts = Facts(totals, now, rows, collector, [Row(1, LogState.SEALED, 1, 2, 0, 9, 1, 5)])
    facts = facts._replace(
        labelled={one.name: {label: 1 for label, _ in one.cells} for one in counters.LABELLED},
        histograms={one.name: counts(one) for one in HISTOGRAMS},
        epoch=7,
        word_age=0.5,
        standing=Standing(),
    )
    return page(HubCollector(lambda: (facts, Report(SERVING, [])), lambda: config, 0.0)).decode()


@pytest.fixture(scope="module")
def known(exposition: str) -> set[str]:
    """Their names, with those of the lines of a histogram."""
    kinds = [line.split()[2:] for line in exposition.splitlines() if line.startswith("# TYPE")]
    lines = {f"{name}_{part}" for name, kind in kinds if kind == "histogram" for part in
             ("bucket", "sum", "count")}  # fmt: skip
    return {name for name, _ in kinds} | lines


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
    parts = re.compile(r"_(bucket|sum|count)$")
    missing = {one for one in known - documented if not one.startswith("metad_filter_")}
    assert {one for one in missing if parts.sub("", one) not in documented} == set()


def test_the_page_is_small_and_its_labels_are_those_of_the_docs(exposition: str) -> None:
    lines = [line for line in exposition.splitlines() if not line.startswith("#")]
    assert 100 < len(lines) < 250
    labels = {label for line in lines for label in re.findall(r'([a-z]+)="', line)}
    assert labels == {
        "protocol", "reason", "result", "process", "state", "generation", "le", "version",
    }  # fmt: skip


def test_the_dashboard_has_a_panel_for_each_place() -> None:
    found = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in found["panels"]]
    assert len(places) == len(set(places)) > 10


def promtool(*arguments: str, given: str | None = None) -> str:
    """Runs promtool.  Returns its output."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not here (sh tools/test --full brings it)")
    done = subprocess.run(["promtool", *arguments], input=given, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_promtool_takes_the_rules() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(MONITORING / "metad.rules.yml"))


@pytest.mark.slow
def test_promtool_takes_the_page(exposition: str) -> None:
    promtool("check", "metrics", given=exposition)


@pytest.mark.slow
def test_promtool_takes_every_query_of_the_dashboard(tmp_path: Path) -> None:
    found = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    queries = [one["expr"] for panel in found["panels"] for one in panel["targets"]]
    for variable, value in (("$__rate_interval", "5m"), ("$instance", ".*")):
        queries = [one.replace(variable, value) for one in queries]
    rules = [{"record": f"query:{at}", "expr": one} for at, one in enumerate(queries)]
    path = tmp_path / "rules.yml"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"{len(queries)} rules found" in promtool("check", "rules", str(path))


@pytest.mark.slow
def test_the_rules_alert_as_they_say() -> None:
    promtool("test", "rules", str(Path(__file__).with_name("rules_test.yml")))
