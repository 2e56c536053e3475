"""What an operator is told about a node of a cluster: the state, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from metad.monitor.health import DEGRADED, REFUSING, SERVING
from metad.system.node_standing import Obstacle, Short, Standing

from .test_health import Hub

WELL = Standing(active=3, reached=3, linked=2, suffice=True)
SINCE = 1_700_000_000
ETCD = '[cluster]\naddress = "127.0.0.1:7525"\netcd = ["http://127.0.0.1:2379"]\n'


def refused(mail: Obstacle, logins: Obstacle | None = None, **more: object) -> Standing:
    found = WELL._replace(mail=mail, mail_since=SINCE if mail else 0, reached=1, suffice=False)
    logins = mail if logins is None else logins
    return found._replace(logins=logins, logins_since=SINCE + 1 if logins else 0, **more)  # type: ignore[arg-type]


@pytest.fixture
def hub(tmp_path: Path) -> Hub:
    return Hub(tmp_path)


def look(hub: Hub, standing: Standing) -> list[str]:
    hub.more = {"epoch": 7, "standing": standing}
    return list(hub.look().texts)


def test_a_node_that_is_well(hub: Hub) -> None:
    assert look(hub, WELL) == []
    assert hub.look().state == SERVING


@pytest.mark.parametrize(
    ("standing", "text"),
    [
        (refused(Obstacle.OLD_DISK), "this node has an old copy of its disk, or runs twice"),
        (refused(Obstacle.REMOVED), "this node was removed from its cluster"),
        (refused(Obstacle.ABSENT), "the cluster has gone on without this node"),
        (refused(Obstacle.ENTERING), "this node enters its cluster"),
        (
            refused(Obstacle.FEW, silent=(2, 3)),
            "too few nodes of the cluster answer, nodes 2 and 3 do not",
        ),
        (refused(Obstacle.FEW), "too few nodes of the cluster are active"),
    ],
)
def test_a_node_that_refuses_mail_and_logins(hub: Hub, standing: Standing, text: str) -> None:
    assert look(hub, standing) == [f"{text}: new mail and POP3 logins are refused"]
    found = hub.look()
    assert (found.state, found.since) == (REFUSING, [SINCE])
    assert found.facts[0]["remedy"]


def test_a_node_that_still_lists_mailboxes(hub: Hub) -> None:
    standing = refused(Obstacle.FEW, Obstacle.NONE, silent=(2,))
    assert look(hub, standing) == [
        "too few nodes of the cluster answer, node 2 does not: new mail and deletions are refused"
    ]
    assert hub.look().state == REFUSING


def test_two_reasons_are_told_apart(hub: Hub) -> None:
    few, word = look(hub, refused(Obstacle.FEW, Obstacle.NO_WORD, silent=(2,)))
    assert "new mail and deletions are refused" in few
    assert "neither etcd nor enough other nodes answer" in word
    assert word.endswith(": POP3 logins are refused")
    assert hub.look().since == [SINCE, SINCE + 1]


def test_logins_alone_are_refused(tmp_path: Path) -> None:
    standing = refused(Obstacle.NONE, Obstacle.AWAY, unhealed=(3, 4), short=Short.AWAY)
    for name, text, remedy in (("peers", "", "start nodes 3 and 4"), ("etcd", ETCD, "--lossy")):
        (tmp_path / name).mkdir()
        hub = Hub(tmp_path / name, text)
        hub.more = {"word_age": 1.0}
        hub.more |= {"epoch": 7, "standing": standing}
        found = hub.look()
        assert found.texts == [
            "nodes 3 and 4 may have mail that no other node has: POP3 logins are refused"
        ]
        assert (found.state, found.since) == (DEGRADED, [SINCE + 1])
        assert found.facts[0]["remedy"].endswith(remedy)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"silent": (3,)}, "node 3 of the cluster does not answer"),
        ({"absent": (2, 3)}, "nodes 2 and 3 are absent: the other nodes have gone on"),
        ({"short": Short.NEW}, "new mail has one copy only"),
        ({"short": Short.OLD}, "some mail is short of copies: it is being copied"),
    ],
)
def test_what_needs_attention_while_all_is_served(
    hub: Hub, change: dict[str, object], text: str
) -> None:
    assert look(hub, WELL._replace(**change)) == [text]  # type: ignore[arg-type]
    assert hub.look().state == DEGRADED


def test_an_absent_node_is_replaced_as_its_cluster_allows(tmp_path: Path) -> None:
    for name, text, remedy in (("peers", "", "same address"), ("etcd", ETCD, "remove 3")):
        (tmp_path / name).mkdir()
        hub = Hub(tmp_path / name, text)
        hub.more = {"word_age": 1.0, "epoch": 7, "standing": WELL._replace(absent=(3,))}
        assert hub.look().facts[0]["remedy"].endswith(remedy)


def test_a_full_disk_refuses_no_mail_that_others_can_store(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from metad.monitor import health
    from metad.workers.load import space

    full = space([], hub.config.store, hub.config.data)._replace(total=100, free=0)
    monkeypatch.setattr(health, "space", lambda *_: full)
    monkeypatch.setattr(health, "needed_space", lambda *_: 1 << 60)
    assert look(hub, WELL) == ["no space for new mail: other nodes store it"]
    assert hub.look().state == DEGRADED
    assert look(hub, WELL._replace(suffice=False)) == ["no space for new mail"]
    assert hub.look().state == REFUSING
