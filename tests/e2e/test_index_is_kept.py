"""A sound index is kept over restarts, in confined processes too."""

from __future__ import annotations

import json

import pytest

from metad.store.index import state as index_state
from tests.support.clients import bodies, deliver, message
from tests.support.hub import Hub


def test_a_restart_does_not_rebuild_a_sound_index() -> None:
    """Regression: a recovery under Landlock could not open /dev/null, and every start rebuilt the
    index."""
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


def test_a_killed_hub_s_index_is_rebuilt_after_a_remount() -> None:
    """Regression: the confined recovery could not identify the mount, and recorded none."""
    sent = message()
    with Hub(["alice"]) as hub:
        instance = index_state.instance(str(hub.data))
        if instance.endswith(" 0"):
            pytest.skip("the file system of the test has no device")
        deliver(hub, sent, "alice")
        hub.kill()
        state = hub.data / "index" / "state"
        fields = json.loads(state.read_text())
        assert fields["boot"] == instance
        assert not fields["clean"]
        state.write_text(json.dumps(fields | {"boot": instance + "7"}))
        hub.start()
        assert bodies(hub, "alice") == [sent]
        assert "remounted while it was in use; rebuilding" in hub.log.read_text()
