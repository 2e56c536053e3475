"""metad doctor beside a real hub, and after one that was killed."""

from __future__ import annotations

import json
import subprocess

from tests.support.commands import metad
from tests.support.hub import METAD, Hub


def findings(
    hub: Hub, done: subprocess.CompletedProcess[str] | None = None
) -> dict[str, list[dict]]:
    done = done or metad(hub, "doctor", "--no-dns", "--json", check=False)
    found: dict[str, list[dict]] = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["check"], []).append(one)
    worst = max(
        {"ok": 0, "warning": 1, "error": 2}[one["level"]] for row in found.values() for one in row
    )
    assert done.returncode == worst
    return found


def test_a_hub_that_is_well_and_one_that_was_killed():
    with Hub() as hub:
        found = findings(hub)
        assert [one["text"].split()[0] for one in found["ports"]] == ["smtp", "pop3"]
        for check in ("ports", "hub", "permissions", "leftovers", "clone"):
            assert {one["level"] for one in found[check]} == {"ok"}, found[check]
        hub.kill()
        found = findings(hub)
        assert found["hub"][0]["text"] == "no hub is running"
        assert "run/control" in found["leftovers"][0]["text"]
        hub.start()
        assert {one["level"] for one in findings(hub)["leftovers"]} == {"ok"}


def test_the_configuration_is_that_of_the_running_hub_unless_another_is_given():
    """Regression: without --config, ports with implicit TLS were tried without it."""
    with Hub() as hub:
        command = [METAD, "doctor", "--no-dns", "--json", "--data", str(hub.data)]
        found = findings(hub, subprocess.run(command, capture_output=True, text=True, check=False))
        assert found["configuration"] == findings(hub)["configuration"]
        assert str(hub.config) in json.dumps(found["configuration"])
        assert {one["level"] for one in found["ports"]} == {"ok"}


def test_a_store_of_another_machine_is_warned_of_when_it_starts():
    with Hub() as hub:
        hub.stop()
        note = hub.data / "machine.json"
        note.write_text(json.dumps({"key": "0" * 32, "hostname": "elsewhere"}))
        found = findings(hub)["clone"]
        assert [one["level"] for one in found] == ["error"]
        hub.start()
        assert "another machine (elsewhere)" in hub.log.read_text()
        assert findings(hub)["clone"][0]["text"].startswith("moved here from elsewhere")
