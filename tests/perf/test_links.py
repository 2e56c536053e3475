"""perf.links: every request that it counts was answered."""

from __future__ import annotations

from perf import links


def test_both_sides_are_measured() -> None:
    found = links.measure(0.02, 100)
    assert found["messages"] >= links.BATCH
    assert found["messages"] % links.BATCH == 0
    assert found["asker_us"] > 0
    assert found["taker_us"] > 0
