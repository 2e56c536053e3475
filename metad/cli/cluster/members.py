"""`metad cluster alone`, `remove` and `drain`: the operator decides which members take part."""

from __future__ import annotations

import json
from typing import Any

import click

from metad import __version__
from metad.cli import tables
from metad.cli.cluster import setup
from metad.cli.cluster.status import Reached, found
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cluster import alone as going
from metad.cluster import local
from metad.cluster.view import Membership, View
from metad.errors import ClusterError, ConfigError


@click.command()
@hub_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--lossy", is_flag=True, help="With etcd: lose the mail that only others have.")
@json_option
def alone(place: HubLocation, yes: bool, lossy: bool, as_json: bool) -> None:
    """Let this node go on without all others, which must be off.

    This node then accepts mail again, in one copy.  When another node is back, it gets what it
    lacks before it takes part again.

    Without etcd, if both nodes go on alone, mail of both is kept, but users see one half of it
    until the nodes are connected and this command is given on one of them once more.

    With etcd, nodes go on by themselves while enough are left.  Give this command when one node is
    left, 15 seconds after the others ended.  The node can list mailboxes when all but one of the
    others are back or removed (metad cluster remove --lossy).

    \b
    Example:
      metad cluster alone
    """
    with_etcd = bool(place.config.cluster.etcd)
    data = place.enter()
    view, number, members = found(data, __version__)
    _check_off(members, number)
    if with_etcd:
        changed = going.alone_with_etcd(view, number, is_lossy=lossy)
    else:
        changed = going.alone(view, number)
    if not yes:
        others = " and ".join(str(one) for one in changed.those(Membership.ABSENT))
        click.confirm(f"Is node {others} off?", abort=True, err=True)
    if with_etcd:
        _propose(place, changed)
    else:
        setup.go_on_alone(data, changed)
    setup.accept_disk(data)
    _show({"node": number, "epoch": changed.epoch, "copies": len(changed.active)}, as_json)


@click.command()
@hub_options
@click.argument("number", type=click.IntRange(1, 65_535))
@click.option("--lossy", is_flag=True, help="Lose the mail that only node NUMBER has.")
@json_option
def remove(place: HubLocation, number: int, lossy: bool, as_json: bool) -> None:
    """Take node NUMBER, which is off, out of the cluster for good.

    Give it on another node.  It is refused while the node has a lease in etcd, while another active
    node is down, if too few nodes would be left, and while the mail of the node is not on enough
    others.  The number is not used again; the machine can join again with an empty data directory.

    \b
    Example:
      metad cluster remove 3
    """
    if not place.config.cluster.etcd:
        raise ConfigError(
            "cluster.etcd is missing: without etcd, a node that joins at the address of a lost one "
            "replaces it",
            remedy="metad cluster alone here, then metad cluster join on the new node",
        )
    _show({"removed": number} | _ask_about(place, "remove", number, lossy=lossy), as_json)


@click.command()
@hub_options
@click.argument("number", type=click.IntRange(1, 65_535))
@click.option("--cancel", is_flag=True, help="Keep node NUMBER after all, while it drains.")
@json_option
def drain(place: HubLocation, number: int, cancel: bool, as_json: bool) -> None:
    """Take node NUMBER, which runs, out of the cluster without a loss of copies.

    It goes on serving, and gets no more copies of new mail.  When all its mail is on other nodes it
    is removed by itself: then stop it.  It is refused while another node drains, and if too few
    nodes would be left.  Needs etcd.

    \b
    Example:
      metad cluster drain 3
    """
    if not place.config.cluster.etcd:
        raise ConfigError(
            "cluster.etcd is missing: without etcd there are two nodes, and neither can be spared",
            remedy="stop one, and metad cluster alone lets the other go on",
        )
    what = "kept" if cancel else "draining"
    _show({what: number} | _ask_about(place, "drain", number, cancel=cancel), as_json)


def _ask_about(place: HubLocation, order: str, number: int, **more: bool) -> dict[str, int]:
    """Have the directory process of this node carry out an order about node `number`.  Returns the
    own number and the new epoch.  Raises ClusterError."""
    data = place.enter()
    _, own, members = found(data, __version__)
    up = [one.number for one in members if one.is_up]
    message = {"op": order, "number": number, "answering": up} | more
    answer = local.ask(local.socket_path(data), message)
    return {"node": own, "epoch": answer["epoch"]}


def _check_off(members: list[Reached], own: int) -> None:
    """Raises ClusterError."""
    for one in members:
        if one.number != own and one.epoch:
            raise ClusterError(
                f"node {one.number} answers at {one.address}: it is not off",
                remedy="stop it first: metad stop there",
            )


def _propose(place: HubLocation, view: View) -> None:
    """Raises ClusterError."""
    message = {"op": "propose", "view": view.encode()}
    local.ask(local.socket_path(place.data), message)


def _show(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(facts)
