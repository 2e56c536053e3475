"""`metad cluster`: several nodes, one hub.

Rules of this file:

* What another node is told, or tells, is checked there and here: `metad.cluster` does both.
* The view is written last: until then a command can be repeated.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import click

from metad import __version__
from metad.cli import tables
from metad.cli.cluster import setup
from metad.cli.cluster.join_client import JoinClient
from metad.cli.cluster.status import Prospect, found, prospects
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.locked import check_unlocked
from metad.cluster import alone as going
from metad.cluster import identity, tokens
from metad.cluster.tokens import Token, Tokens
from metad.cluster.view import State
from metad.errors import ClusterError, ConfigError, OsError, UnavailableError
from metad.system.osio import Osio


@click.group("cluster", no_args_is_help=False)
def group() -> None:
    """Make a cluster of two nodes, and see how it is.

    \b
    Example:
      metad cluster status
    """


@group.command()
@hub_options
@json_option
def init(place: HubLocation, as_json: bool) -> None:
    """Make this hub the first node of a new cluster; it must be stopped.

    It keeps its mail.  The configuration names the addresses of both nodes in [cluster].  Needs
    the program openssl.

    \b
    Example:
      metad cluster init
    """
    address = setup.own_address(place.config)
    place.make()
    with setup.stopped(place) as store:
        view = setup.init(store, address)
    facts = {"cluster": view.cluster, "node": store.node, "address": address}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(facts)
        click.echo("Start the hub, then: metad cluster token")


@group.command()
@hub_options
@json_option
def token(place: HubLocation, as_json: bool) -> None:
    """Print a token with which another node can join, once, within an hour.

    The token is a secret: it lets a machine become a member.  The hub must be running when the
    other node joins.

    \b
    Example:
      metad cluster token
    """
    address = setup.own_address(place.config)
    data = place.enter()
    directory = setup.member_directory(data)
    fingerprint = identity.own_fingerprint(directory)
    now = int(time.time())
    try:
        secret = Tokens(Osio(), directory).make(now)
    except OSError as error:
        raise OsError(f"{directory}: {error.strerror}") from None
    text = Token(address, fingerprint, secret).text()
    if as_json:
        until = now + tokens.GOOD_SECONDS
        click.echo(json.dumps({"token": text, "address": address, "until": until}, indent=2))
    else:
        click.echo(text)
    if not _runs(place):
        click.echo("metad: warning: no hub is running here; start it before the join", err=True)


@group.command()
@hub_options
@click.argument("token")
@json_option
def join(place: HubLocation, token: str, as_json: bool) -> None:
    """Make this hub a node of the cluster that TOKEN is from; it must be stopped.

    Its store must be empty.  After its start it takes part in the cluster as soon as it has
    reached the other node.  Needs the program openssl.

    \b
    Example:
      metad cluster join metad1-...
    """
    shown = tokens.parse(token)
    address = setup.own_address(place.config)
    if shown.address not in place.config.cluster.peers:
        raise ConfigError(f"cluster.peers: must name {shown.address}, where the token is from")
    place.make()
    with setup.stopped(place) as store, JoinClient(shown, __version__) as client:
        number, view = setup.join(store, client, address)
    facts = {"cluster": view.cluster, "node": number, "address": address, "epoch": view.epoch}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(facts)
        click.echo("Start the hub, then: metad cluster status")


@group.command()
@hub_options
@json_option
def status(place: HubLocation, as_json: bool) -> None:
    """Show the members, which of them can be reached, and what one more failure would cost.

    This command asks each member itself, so it shows the network of the moment.

    \b
    Example:
      metad cluster status
    """
    data = place.enter()
    view, number, members = found(data, __version__)
    up = [one.number for one in members if one.is_up]
    outlook = list(prospects(view, up))
    facts: dict[str, Any] = {
        "cluster": view.cluster,
        "node": number,
        "epoch": view.epoch,
        "digest": view.digest.hex(),
        "copies": view.copies,
        "copies_of_old_mail": view.read_copies,
    }
    if as_json:
        facts["members"] = [asdict(one) for one in members]
        facts["outlook"] = [one.facts() for one in outlook]
        click.echo(json.dumps(facts, indent=2))
        return
    tables.show_facts({name.replace("_", " "): value for name, value in facts.items()})
    click.echo("")
    tables.show_table("members", [one.row() for one in members])
    click.echo("")
    tables.show_table("outlook", [_shown(one) for one in outlook])


@group.command()
@hub_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def alone(place: HubLocation, yes: bool, as_json: bool) -> None:
    """Let this node go on without the other, which must be off.

    This node then accepts mail again, in one copy.  When the other node is back, it gets what it
    lacks before it takes part again.  If both nodes go on alone, mail of both is kept, but users
    see one half of it until the nodes are connected and this command is given on one of them once
    more.

    \b
    Example:
      metad cluster alone
    """
    data = place.enter()
    view, number, members = found(data, __version__)
    for one in members:
        if one.number != number and one.epoch:
            raise ClusterError(f"node {one.number} answers at {one.address}: it is not off")
    changed = going.alone(view, number)
    if not yes:
        others = " and ".join(str(one) for one in changed.those(State.ABSENT))
        click.confirm(f"Is node {others} off?", abort=True, err=True)
    setup.go_on_alone(data, changed)
    facts = {"node": number, "epoch": changed.epoch, "copies": len(changed.active)}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(facts)


def _shown(one: Prospect) -> dict[str, str]:
    yes = {True: "yes", False: "no"}
    return {
        name: yes[value] if isinstance(value, bool) else value
        for name, value in one.facts().items()
    }


def _runs(place: HubLocation) -> bool:
    try:
        check_unlocked(place.data)
    except UnavailableError:
        return True
    return False
