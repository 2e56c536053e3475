"""A sound index is kept over restarts, in confined processes too."""

from __future__ import annotations

from tests.support.clients import bodies, deliver, message
from tests.support.hub import Hub


def test_a_restart_does_not_rebuild_a_sound_index() -> None:
    """A recovery under Landlock could not open /dev/null, and every start rebuilt the index."""
    sent = message()
    with Hub(["alice"]) as hub:
        deliver(hub, sent, "alice")
        for end in (hub.stop, hub.kill):
            end()
            hub.start()
        assert bodies(hub, "alice") == [sent]
        lines = [line for line in hub.log.read_text().splitlines() if "rebuilding" in line]
        assert len(lines) == 1  # the first start
        assert "there is none" in lines[0]
