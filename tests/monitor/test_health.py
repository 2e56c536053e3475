"""Problems of a hub, since when they exist, and what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from metad.config.parse import parse
from metad.monitor import health
from metad.monitor.facts import Facts
from metad.monitor.health import DEGRADED, REFUSING, SERVING, Health
from metad.store.log_table import LogState, Row
from metad.system import counters
from metad.system.shared_memory import Cell
from metad.workers.load import space

SECOND = 1_000_000_000


class Hub:
    """A hub as shared memory shows it."""

    def __init__(self, data: Path, text: str = "") -> None:
        (data / "logs").mkdir()
        self.config = parse(text, None, data, {})
        self.now, self.ticks = 1_000_000.0, 100 * SECOND
        self.health = Health(lambda: self.config, lambda: self.now, lambda: self.ticks)
        self.beats = [self.ticks, self.ticks]
        self.totals = {one.name: 0 for one in counters.HUB} | {"log_lines_dropped": 0}
        self.collector = {one.name: 0 for one in counters.COLLECTOR}
        self.cells: list[dict[Cell, int]] = []  # what the workers report about themselves
        self.clock_suspect = False
        self.store_remade = 0
        self.logs: list[Row] = []
        self.damaged_logs: frozenset[int] = frozenset()
        self.more: dict[str, Any] = {}

    def look(self) -> Any:
        cells = self.cells + [{}] * (len(self.beats) - len(self.cells))
        pairs = zip(self.beats, cells, strict=True)
        rows: list[Any] = [
            dict.fromkeys(Cell, 0) | {Cell.HEARTBEAT: beat} | noted for beat, noted in pairs
        ]
        facts = Facts(
            self.totals, {}, rows, self.collector, self.logs,
            clock_suspect=self.clock_suspect, damaged_logs=self.damaged_logs,
            store_remade=self.store_remade, **self.more,
        )  # fmt: skip
        report = self.health.look(facts)
        return SimpleNamespace(
            state=report.state,
            texts=[one.text for one, _ in report.problems],
            since=[since for _, since in report.problems],
            facts=report.facts(),
        )


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def test_a_hub_without_a_problem_serves(hub: Hub) -> None:
    assert (hub.look().state, hub.look().facts) == (SERVING, [])


def test_a_worker_without_a_heartbeat_degrades_and_none_refuses(hub: Hub) -> None:
    hub.beats[0] -= 31 * SECOND
    assert hub.look().texts == ["1 of 2 workers are not running"]
    assert hub.look().state == DEGRADED
    hub.beats = []
    assert hub.look().state == REFUSING


def test_a_problem_keeps_the_time_since_when_it_lasts_and_is_forgotten_with_it(hub: Hub) -> None:
    hub.totals["damaged"] = 1
    began = int(hub.now)
    assert hub.look().since == [began]
    hub.now += 60
    assert hub.look().since == [began]
    hub.totals["damaged"] = 0
    assert hub.look().state == SERVING
    hub.now += 60
    hub.collector["damaged"] = 1
    assert hub.look().since == [began + 120]
    assert "metad fsck" in hub.look().facts[0]["remedy"]


def test_damage_is_named_and_so_is_a_log_that_was_left_out(hub: Hub) -> None:
    hub.totals["damaged"] = 1
    hub.damaged_logs = frozenset({7, 3})
    assert hub.look().texts == ["damaged records were found, the last in log 3, 7"]
    hub.totals["damaged"] = 0
    rows = [(LogState.ACTIVE, 1), (LogState.ACTIVE, 0), (LogState.SEALED, 0)]
    hub.logs = [Row(n, state, 9, 0, owner, 0, 0, 0) for n, (state, owner) in enumerate(rows, 1)]
    assert hub.look().texts == ["log 2 was left out at the start: its mail may be missing"]
    assert hub.look().state == DEGRADED


def test_dropped_log_lines_are_a_problem(hub: Hub) -> None:
    hub.totals["log_lines_dropped"] = 3
    assert "log lines were dropped" in hub.look().texts[0]


def test_no_space_refuses_and_little_degrades(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, state in ((0, REFUSING), (5, DEGRADED), (50, SERVING)):
        found = space([], hub.config.store, hub.config.data)._replace(total=100, free=free)
        monkeypatch.setattr(health, "space", lambda *_, found=found: found)
        monkeypatch.setattr(health, "needed_space", lambda *_: 1 << 60)
        assert hub.look().state == state
    # A log allocates blocks as it grows: less free space than a whole log is not yet a problem.
    found = space([], hub.config.store, hub.config.data)._replace(total=100, free=0)
    monkeypatch.setattr(health, "space", lambda *_: found)
    monkeypatch.setattr(health, "needed_space", lambda *_: 0)
    assert hub.look().state == DEGRADED
    monkeypatch.setattr(health, "space", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    assert "the disk cannot be checked" in hub.look().texts[0]


def test_a_hub_whose_workers_all_lack_space_refuses(hub: Hub) -> None:
    """Regression: at size_limit the logs of the collector counted as space, and it was serving."""
    hub.cells = [{Cell.NO_SPACE: 999_000}, {}]
    assert hub.look().texts == ["some workers have no space for new mail"]
    assert hub.look().state == DEGRADED
    hub.cells = [{Cell.NO_SPACE: 999_000}, {Cell.NO_SPACE: 999_500}]
    assert hub.look().texts == ["no space for new mail"]
    assert (hub.look().state, hub.look().since) == (REFUSING, [999_000])
    hub.cells = []
    assert hub.look().state == SERVING


def test_certificates_are_read_once_a_minute(tmp_path: Path, monkeypatch) -> None:
    hub = Hub(tmp_path, '[[listen]]\nprotocol="smtp"\naddress="127.0.0.1:1"\ntls="starttls"')
    asked = []

    def warnings(_config, now):
        asked.append(now)
        return ["certificate mx expires on 2026-12-01, in 3 days"]

    monkeypatch.setattr("metad.tls.store.expiry_warnings", warnings)
    for _ in range(3):
        assert hub.look().texts == ["certificate mx expires on 2026-12-01, in 3 days"]
    hub.now += 61
    hub.look()
    assert len(asked) == 2


def test_a_hub_whose_certificates_are_gone_is_degraded(tmp_path: Path) -> None:
    """Its workers still have them; the next ones cannot start."""
    hub = Hub(tmp_path, '[[listen]]\nprotocol="smtp"\naddress="127.0.0.1:1"\ntls="starttls"')
    (found,) = hub.look().facts
    assert hub.look().state == DEGRADED
    assert found["problem"] == "there is no certificate any more: a reload or a start fails"
    assert "metad tls install" in found["remedy"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "text", "most"),
    [
        (Cell.INDEX_BEHIND, "the index is behind", REFUSING),
        (Cell.WRITES_FAIL, "writes to the logs fail", REFUSING),
        (Cell.LOG_FAILED, "a log was given up", DEGRADED),
        (Cell.USERS_LOST, "the users database was lost", REFUSING),
    ],
)
def test_what_workers_note_is_a_problem_since_the_first_did(
    hub: Hub, cell: Cell, text: str, most: str
) -> None:
    hub.cells = [{cell: 900_000}]
    assert hub.look().state == DEGRADED
    assert hub.look().since == [900_000]
    assert hub.look().texts[0].startswith(text)
    hub.cells = [{cell: 900_000}, {cell: 800_000}]
    assert hub.look().state == most
    assert hub.look().since == [800_000]
    hub.cells = []
    assert hub.look().state == SERVING


CLUSTER = '[cluster]\naddress = "10.0.0.1:7525"\netcd = ["http://10.0.0.9:2379"]\n[limits]\n'


@pytest.mark.parametrize(
    ("since", "age", "text"),
    [
        (0, 10.0, ""),
        (0, 10.1, "etcd does not answer"),
        (0, None, "etcd does not answer"),
        (900_000, 1.0, "the directory in etcd was wiped or rolled back, or this is another etcd"),
    ],
)
def test_the_directory_of_a_cluster_degrades(
    tmp_path: Path, since: int, age: float | None, text: str
) -> None:
    hub = Hub(tmp_path, CLUSTER + 'message_size = "1MiB"\n')
    hub.more = {"untrusted_since": since, "word_age": age}
    if age is None:
        assert hub.look().state == SERVING
    hub.ticks += 10 * SECOND + 1
    found = hub.look()
    assert [one[: len(text)] for one in found.texts] == ([text] if text else [])
    assert found.state == (DEGRADED if text else SERVING)
    if since:
        assert found.since == [since]
        assert "restore-directory" in found.facts[0]["remedy"]


def test_an_etcd_that_answers_and_refuses(tmp_path: Path) -> None:
    """Out of space, say: its word is fresh."""
    hub = Hub(tmp_path, CLUSTER + 'message_size = "1MiB"\n')
    hub.more = {"etcd_refuses_since": 900_000, "word_age": 1.0}
    hub.ticks += 10 * SECOND + 1
    found = hub.look()
    assert found.state == DEGRADED
    assert found.texts[0].startswith("etcd refuses requests")
    assert found.since == [900_000]


def test_a_node_that_waits_for_the_users_of_its_cluster_says_so(tmp_path: Path) -> None:
    hub = Hub(tmp_path, CLUSTER + 'message_size = "1MiB"\n')
    hub.more = {"word_age": 1.0}
    hub.cells = [{Cell.USERS_LOST: 900_000}, {Cell.USERS_LOST: 900_000}]
    found = hub.look()
    assert found.state == REFUSING
    assert found.texts[0].startswith("not all users of the cluster are here yet")
    assert "accept-loss" not in found.facts[0]["remedy"]


def test_a_hub_that_is_alone_needs_no_etcd(hub: Hub) -> None:
    hub.more = {"word_age": None}
    assert hub.look().state == SERVING


def test_a_clock_that_is_not_believed_degrades(hub: Hub) -> None:
    hub.clock_suspect = True
    assert hub.look().state == DEGRADED
    assert "metad store time --accept" in hub.look().facts[0]["remedy"]


def test_a_store_json_that_was_made_again_degrades(hub: Hub) -> None:
    hub.store_remade = 900_000
    assert (hub.look().state, hub.look().since) == (DEGRADED, [900_000])
    assert hub.look().texts[0].startswith("store.json could not be read")
    assert "metad fsck" in hub.look().facts[0]["remedy"]


def test_no_space_is_known_since_the_worker_met_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = space([], hub.config.store, hub.config.data)._replace(total=100, free=0)
    monkeypatch.setattr(health, "space", lambda *_: found)
    monkeypatch.setattr(health, "needed_space", lambda *_: 1 << 60)
    hub.cells = [{Cell.NO_SPACE: 123_456}]
    assert hub.look().since == [123_456]
