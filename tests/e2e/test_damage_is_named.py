"""`metad status` names damage found while serving, and says what to do."""

from __future__ import annotations

import json
from contextlib import suppress

from tests.support.clients import Pop3Line, bodies, deliver, in_time, message
from tests.support.hub import Hub


def problems(hub: Hub) -> list[str]:
    return [one["problem"] for one in hub.status()["problems"]]


def test_a_record_that_does_not_verify_is_named_by_its_log() -> None:
    """Regression: it was counted, but the status did not say where."""
    with Hub(["alice"]) as hub:
        sent = [message(b"one\r\n"), message(b"two\r\n")]
        for each in sent:
            deliver(hub, each, "alice")
        found = None
        for path in sorted((hub.data / "logs").glob("*.log")):
            if (at := path.read_bytes().find(b"two\r\n")) >= 0:
                found = path
                with open(path, "r+b") as file:
                    file.seek(at)
                    file.write(b"TWO")
        assert found is not None
        assert problems(hub) == []
        with Pop3Line(hub) as pop:
            pop.log_in("alice")
            pop.send(b"RETR 2\r\n")
            assert pop.line().startswith(b"-ERR [SYS/PERM]")
        number = int(found.stem)
        named = [f"damaged records were found, the last in log {number}"]
        assert in_time(lambda: problems(hub) == named)
        assert hub.status()["state"] == "degraded"


def test_a_log_that_cannot_be_read_at_the_start_is_named_until_it_can() -> None:
    with Hub(["alice"]) as hub:
        sent = message(b"unread\r\n")
        deliver(hub, sent, "alice")
        hub.stop()
        logs = (hub.data / "logs").glob("*.log")
        (path,) = [path for path in logs if b"unread\r\n" in path.read_bytes()]
        path.chmod(0)
        hub.start()
        assert problems(hub) == [
            f"log {int(path.stem)} was left out at the start: its mail may be missing"
        ]
        with suppress(AssertionError):
            bodies(hub, "alice")
        deliver(hub, message(), "alice")
        path.chmod(0o600)
        hub.stop()
        hub.start()
        assert problems(hub) == []
        assert bodies(hub, "alice")[0] == sent


def test_a_store_json_that_is_damaged_is_made_again_and_named_until_the_next_start() -> None:
    """Regression: it stopped every start, though the logs' headers repeat what was in it."""
    with Hub(["alice"]) as hub:
        sent = message(b"kept\r\n")
        deliver(hub, sent, "alice")
        hub.stop()
        path = hub.data / "store.json"
        known = json.loads(path.read_text())
        path.write_bytes(b"")
        assert "the next start makes it again" in hub.run("fsck", check=False).stdout
        hub.start()
        (problem,) = problems(hub)
        assert problem.startswith("store.json could not be read: it was made again from the logs")
        assert hub.status()["state"] == "degraded"
        assert "warning" in hub.log.read_text().partition("store.json: damaged")[0].splitlines()[-1]
        deliver(hub, message(), "alice")
        assert [len(bodies(hub, "alice")), bodies(hub, "alice")[0]] == [2, sent]
        hub.run("fsck")
        hub.stop()
        hub.start()
        assert problems(hub) == []
        fresh = json.loads(path.read_text())
        assert fresh["node"] != known["node"]
        assert fresh | {"node": 0} == known | {"node": 0}
