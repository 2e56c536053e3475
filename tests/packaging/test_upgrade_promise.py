"""docs/upgrade.md: a store of a newer format is refused, and nothing in it is changed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from metad.store.identity import CLUSTERED
from tests.support.hub import Hub


def digests(data: Path) -> dict[str, str]:
    """Of the store itself: its identity, its logs, its users."""
    files = [data / "store.json", *(data / "logs").iterdir(), *(data / "users").iterdir()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_store_of_a_newer_format_is_refused_and_left_as_it_is():
    with Hub() as hub:
        hub.stop()
        path = hub.data / "store.json"
        text = path.read_text()
        fields = json.loads(text)
        path.write_text(json.dumps(fields | {"format": CLUSTERED + 1}))
        before = digests(hub.data)
        done = hub.run("start", check=False)
        assert done.returncode == 65
        assert f"format {CLUSTERED + 1} is newer than this program" in done.stderr
        assert digests(hub.data) == before
        path.write_text(text)
        hub.start()
