"""What the judge of clusters asks for, and what it cannot ask for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.sim.cluster_judge import TELLING_SECONDS, ClusterJudge

BOX = 1
MESSAGE = bytes(15) + b"\1"


def node(number: int, heard_seconds: float) -> Any:
    return SimpleNamespace(node=number, heard_seconds=heard_seconds)


@pytest.fixture
def judge() -> ClusterJudge:
    """Node 2 has refused a message when it had been heard for 100 s."""
    sim: Any = SimpleNamespace(note=lambda text: None, faults=SimpleNamespace(struck=False))
    made = ClusterJudge(sim)
    made.sent(MESSAGE, b"text", (BOX,))
    made.refuse(MESSAGE, node(2, 100.0))
    return made


def shown_in_quiet(judge: ClusterJudge) -> None:
    judge.all_have_met()
    judge.listed("at node 1", BOX, [MESSAGE], judge.before_login(BOX))


def test_refused_mail_is_gone_in_quiet(judge: ClusterJudge) -> None:
    with pytest.raises(AssertionError, match="lists what was deleted"):
        shown_in_quiet(judge)


def test_it_is_gone_also_after_the_loss_of_the_disk_if_the_node_could_tell(
    judge: ClusterJudge,
) -> None:
    judge.disk_is_lost(node(2, 100.0 + TELLING_SECONDS))
    with pytest.raises(AssertionError, match="lists what was deleted"):
        shown_in_quiet(judge)


def test_it_may_show_if_only_the_lost_disk_knew(judge: ClusterJudge) -> None:
    judge.disk_is_lost(node(2, 100.0))
    shown_in_quiet(judge)


def test_the_disk_of_another_node_excuses_nothing(judge: ClusterJudge) -> None:
    judge.disk_is_lost(node(3, 0.0))
    with pytest.raises(AssertionError, match="lists what was deleted"):
        shown_in_quiet(judge)
