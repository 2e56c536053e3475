"""`metad cluster restore-directory`: etcd was wiped or rolled back."""

from __future__ import annotations

import asyncio
import json

import click

from metad import __version__
from metad.cli import tables
from metad.cli.cluster import setup
from metad.cli.cluster.status import Reached, found
from metad.cli.context import HubLocation, hub_options, json_option
from metad.cluster import etcd, identity, restoring, seen
from metad.cluster.directory_keys import Identity
from metad.cluster.seen import SeenFile
from metad.cluster.view import View
from metad.config.model import Config
from metad.errors import ClusterError, ConfigError
from metad.system.osio import Osio
from metad.users.mirrored import MirroredUsers
from metad.users.upload import Upload


@click.command("restore-directory")
@hub_options
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def restore_directory(place: HubLocation, yes: bool, as_json: bool) -> None:
    """Write the directory into etcd again, from this node, after etcd was wiped or rolled back.

    Give it on the node with the greatest epoch (metad cluster status).  All nodes then trust etcd
    again; until then mail goes on, but neither the view nor users can be changed.  It is refused
    while another node trusts a different etcd.

    \b
    Example:
      metad cluster restore-directory
    """
    config = place.config
    if not config.cluster.etcd:
        raise ConfigError(
            f"{config.source or 'configuration'}: cluster.etcd: is not set",
            remedy="set cluster.etcd, if this cluster has one",
        )
    etcd.load()
    data = place.enter()
    view, number, members = found(data, __version__)
    setup.check_is_in(view, number)
    check_newest(view, members)
    if not yes:
        silent = [str(one.number) for one in members if not one.epoch and one.state != "removed"]
        if silent:
            click.echo(f"metad: warning: no answer from node {', '.join(silent)}", err=True)
        click.confirm(f"Is {view.epoch} the greatest epoch of all nodes?", abort=True, err=True)
    made, following = asyncio.run(restore(config, view, number, members))
    if following is not view:
        setup.keep(data, following)
    facts = {"cluster": view.cluster, "epoch": following.epoch, "generation": made.generation}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        tables.show_facts(facts)


def check_newest(view: View, members: list[Reached]) -> None:
    """Raises ClusterError if a member answered with a greater epoch."""
    for one in members:
        if one.epoch > view.epoch:
            raise ClusterError(
                f"node {one.number} has epoch {one.epoch}, this node {view.epoch}",
                remedy=f"give this command on node {one.number}",
            )


def check_etcd(used: int, members: list[Reached]) -> None:
    """Two directories at once would give users the same mailbox.  `used`: the etcd that is to be
    written to.  Raises ClusterError if a member trusts another one."""
    for one in members:
        if one.etcd and used and one.etcd != used:
            raise ClusterError(
                f"node {one.number} trusts another etcd than the one that cluster.etcd names here",
                remedy="give all nodes the same cluster.etcd, reload them, and try again",
            )


async def restore(
    config: Config, view: View, number: int, members: list[Reached]
) -> tuple[Identity, View]:
    """Raises ClusterError, UnavailableError, ConfigError, OSError."""
    path = identity.directory(config.data) / seen.NAME
    known = SeenFile(Osio(), str(path)).load()
    with MirroredUsers(config.data / "users") as users:
        upload = Upload(users, number)
        async with etcd.Etcd(config.cluster) as client:
            check_etcd((await client.read()).etcd, members)
            return await restoring.restore(client, view, known, number, upload.write)
