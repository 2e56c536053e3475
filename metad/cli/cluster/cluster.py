"""`metad cluster`: several nodes, one hub.

Rules of this file:

* What another node is told, or tells, is checked there and here: `metad.cluster` does both.
* The view is written last: until then a command can be repeated.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from metad import __version__
from metad.cli import tables
from metad.cli.cluster import setup
from metad.cli.cluster.join_client import JoinClient
from metad.cli.cluster.members import alone, drain, remove
from metad.cli.cluster.overview import Overview, ask_directory, show_facts
from metad.cli.cluster.restore_directory import restore_directory
from metad.cli.cluster.status import Prospect, found
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cli.locked import check_unlocked
from metad.cluster import identity, tokens
from metad.cluster.tokens import Token, Tokens
from metad.cluster.view_file import ViewFile
from metad.errors import ConfigError, OsError, UnavailableError
from metad.store.identity import open_store
from metad.system.osio import Osio


@click.group("cluster", no_args_is_help=False)
def group() -> None:
    """Make several nodes one hub, and see how they are.

    \b
    Example:
      metad cluster status
    """


@group.command()
@hub_options
@json_option
def init(place: HubLocation, as_json: bool) -> None:
    """Make this hub, which is stopped, the first node of a new cluster.

    It keeps its mail and users.  The configuration needs the table [cluster]: the address of this
    node, and the address of the other node or of etcd.  etcd must answer.  The program openssl is
    needed.

    \b
    Example:
      metad cluster init
    """
    address = setup.own_address(place.config)
    place.make()
    with setup.stopped(place) as store:
        view = setup.init(store, address, place.config.cluster)
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
    """Print a token.  With it, another node can join once, within an hour.

    The token is a secret: it lets a machine become a member.  The hub must be running when the
    other node joins.

    \b
    Example:
      metad cluster token
    """
    address = setup.own_address(place.config)
    data = place.enter()
    directory = setup.member_directory(data)
    open_store(Osio(), data)  # not of a newer release
    fingerprint = identity.own_fingerprint(directory)
    _check_is_in(directory, fingerprint)
    now = int(time.time())
    try:
        secret = Tokens(Osio(), directory).make(now)
    except OSError as error:
        raise OsError.of(error, directory) from None
    text = Token(address, fingerprint, secret).text()
    if as_json:
        until = now + tokens.GOOD_SECONDS
        click.echo(json.dumps({"token": text, "address": address, "until": until}, indent=2))
    else:
        click.echo(text)
    if not _runs(place):
        click.echo("metad: warning: no hub is running here; start it before the join", err=True)


def _check_is_in(directory: Path, fingerprint: str) -> None:
    """Raises ClusterError if this node was removed."""
    view = ViewFile(Osio(), str(directory / identity.VIEW)).read()
    if view is not None:
        for one in view.members:
            if one.fingerprint == fingerprint:
                setup.check_is_in(view, one.number)


@group.command()
@hub_options
@click.argument("token")
@json_option
def join(place: HubLocation, token: str, as_json: bool) -> None:
    """Make this hub, which is stopped, a node of the cluster that made TOKEN.

    Its store must be empty.  Start the hub then: it takes part in the cluster as soon as it has
    reached the active nodes.  The program openssl is needed.

    \b
    Example:
      metad cluster join metad1-...
    """
    shown = tokens.parse(token)
    address = setup.own_address(place.config)
    config = place.config.cluster
    if not config.etcd and shown.address not in config.peers:
        raise ConfigError(
            f"{place.file or 'configuration'}: cluster.peers: must name {shown.address}, where the "
            "token is from",
            remedy=f'set cluster.peers to ["{shown.address}"]',
        )
    place.make()
    with setup.stopped(place) as store, JoinClient(shown, __version__) as client:
        number, view = setup.join(store, client, address, with_etcd=bool(config.etcd))
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
    """Show the members, which of them answer, and what works.

    This command asks each member itself.  Its last table shows what works now, and what would
    still work if one more node or etcd failed.

    \b
    Example:
      metad cluster status
    """
    with_etcd = bool(place.config.cluster.etcd)
    data = place.enter()
    etcd = ask_directory(data) if with_etcd else None
    view, number, members = found(data, __version__)
    if not _runs(place):
        members = [one.without_hub() if one.number == number else one for one in members]
    overview = Overview(view, number, members, etcd)
    if as_json:
        click.echo(json.dumps(overview.as_json(), indent=2))
        return
    show_facts(overview.lines())
    click.echo("")
    tables.show_table("members", overview.rows())
    click.echo("")
    tables.show_table("outlook", [_shown(one) for one in overview.outlook()])


group.add_command(alone)
group.add_command(remove)
group.add_command(drain)


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


group.add_command(restore_directory)
