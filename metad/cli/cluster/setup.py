"""The files of a node that begins a cluster or joins one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from metad.cli.cluster.first_view import begin_directory
from metad.cli.cluster.join_client import JoinAnswer, JoinClient
from metad.cli.context import HubLocation
from metad.cluster import identity
from metad.cluster.certificates import Pair, make_ca, make_member
from metad.cluster.identity import CA, CA_KEY, MEMBER, MEMBER_KEY, VIEW
from metad.cluster.own_marks import REFUSED
from metad.cluster.view import Member, Membership, View
from metad.cluster.view_file import ViewFile
from metad.config.model import ClusterConfig, Config
from metad.errors import CannotCreateError, ClusterError, ConfigError, OsError, UnavailableError
from metad.master.datadir import take_lock
from metad.store.identity import Store, open_or_make_store, write_identity
from metad.system.osio import Osio, write_file
from metad.users.database import UserDatabase
from metad.users.mirror import UserMirror
from metad.users.mirrored import MirroredUsers

CLUSTER_ID_SIZE = 16


def own_address(config: Config) -> str:
    """Raises ConfigError."""
    if config.cluster.address is None:
        raise ConfigError(
            f"{config.source or 'configuration'}: cluster.address is missing: where other nodes "
            "reach this one",
            remedy='set address in the table [cluster], such as "192.0.2.1:7525"',
        )
    return config.cluster.address


def member_directory(data: Path) -> Path:
    """Of a node that is in a cluster.  Raises UnavailableError."""
    directory = identity.directory(data)
    if not (directory / VIEW).exists():
        raise UnavailableError(
            f"{data}: in no cluster", remedy="metad cluster init or join puts it into one"
        )
    return directory


@contextmanager
def stopped(place: HubLocation) -> Iterator[Store]:
    """The store of a hub that is stopped and in no cluster; made if there is none.

    Raises UnavailableError (a hub runs), CannotCreateError, DataError, OsError.
    """
    data = place.enter()
    fd = take_lock(data)
    try:
        if (identity.directory(data) / VIEW).exists():
            raise CannotCreateError(
                f"{data}: in a cluster already", remedy="metad cluster status shows it"
            )
        yield open_or_make_store(Osio(), data)
    except OSError as error:
        raise OsError.of(error, error.filename or data) from None
    finally:
        os.close(fd)


def init(store: Store, address: str, config: ClusterConfig) -> View:
    """Make the cluster, this store its first node.

    Raises OSError, UnavailableError, DataError, ClusterError, ConfigError.
    """
    cluster = secrets.token_hex(CLUSTER_ID_SIZE)
    ca = make_ca(cluster)
    fingerprint = write_certificates(store.data, ca, make_member(ca, store.node))
    member = Member(store.node, address, fingerprint, Membership.ACTIVE, healed=False)
    view = View(cluster, 1, (member,), copies=1, read_copies=1, alone="refuse")
    if config.etcd:
        begin_directory(config, view, store.data / "users")
    else:
        with _users(store.data) as users:
            UserMirror(users).lead(view.epoch)
    become_node(store, store.node, view)
    return view


def join(store: Store, client: JoinClient, address: str, *, with_etcd: bool) -> tuple[int, View]:
    """Join by an open connection: the number of this node, and the view.

    Raises OSError, ClusterError, UnavailableError, DataError, CannotCreateError.
    """
    check_empty(store)
    directory = identity.directory(store.data)
    earlier = _earlier(directory)
    answer = client.ask(earlier)
    _check_mode(answer, with_etcd)
    ca = Pair(answer.ca.decode("ascii", "replace"), answer.ca_key.decode("ascii", "replace"))
    if not earlier or (directory / CA).read_bytes() != answer.ca:
        earlier = write_certificates(store.data, ca, make_member(ca, answer.number))
    view = client.enter(address, earlier)
    member = view.member(answer.number)
    if view.cluster != answer.cluster or member is None or member.fingerprint != earlier:
        raise UnavailableError(
            "the other node answered with a view in which this node is not",
            remedy="try again with another token: metad cluster token there",
        )
    if member.state is Membership.REMOVED:
        raise ClusterError(
            f"node {answer.number} was removed from the cluster",
            remedy="join again with an empty data directory",
        )
    if with_etcd:
        with MirroredUsers(store.data / "users", create=True) as mirrored:
            mirrored.follow(empty=True)
    else:
        with _users(store.data) as users:
            UserMirror(users).follow(view.active[0], empty=True)
    become_node(store, answer.number, view)
    return answer.number, view


def _check_mode(answer: JoinAnswer, with_etcd: bool) -> None:
    """Raises ConfigError."""
    if answer.with_etcd and not with_etcd:
        raise ConfigError(
            "cluster.etcd is missing: the cluster of this token has its view in etcd",
            remedy="set cluster.etcd to the URLs that the other nodes have",
        )
    if with_etcd and not answer.with_etcd:
        raise ConfigError(
            "cluster.etcd: the cluster of this token has no etcd",
            remedy="set cluster.peers in its place",
        )


def go_on_alone(data: Path, view: View) -> None:
    """Store the view of a node that goes on alone; it takes changes of users from now on.

    Raises ClusterError, OsError, DataError.
    """
    with _users(data) as users:
        if users.lost:
            raise ClusterError(
                "not all users are on this node yet; it cannot go on alone",
                remedy="start the other node, which has them",
            )
        numbers = sorted(one.number for one in view.members if one.state is not Membership.REMOVED)
        place = numbers.index(view.active[0])
        UserMirror(users).go_on_alone(view.epoch, place, len(numbers))
    keep(data, view)


def check_is_in(view: View, number: int) -> None:
    """Raises ClusterError if this node was removed: what it has of the cluster is old."""
    member = view.member(number)
    if member is None or member.state is Membership.REMOVED:
        raise ClusterError(
            f"node {number} was removed from the cluster",
            remedy="give the command on a node that is in it",
        )


def accept_disk(data: Path) -> None:
    """The operator lets this node go on, though another knows a later state of its disk."""
    (member_directory(data) / REFUSED).unlink(missing_ok=True)


def _users(data: Path) -> UserDatabase:
    return UserDatabase(data / "users", create=True)


def check_empty(store: Store) -> None:
    """Raises CannotCreateError: mail of another node's number would be among the cluster's."""
    if any(name.endswith(".log") for name in os.listdir(store.logs)):
        raise CannotCreateError(
            f"{store.data}: has logs", remedy="join with a data directory without mail"
        )


def _earlier(directory: Path) -> str:
    """The fingerprint of an attempt whose last answer was lost, "" if there was none."""
    try:
        return identity.own_fingerprint(directory)
    except ConfigError:
        return ""


def write_certificates(data: Path, ca: Pair, member: Pair) -> str:
    """Write both pairs; the fingerprint of the member's certificate.  Raises OSError."""
    osio, directory = Osio(), identity.directory(data)
    if not directory.exists():
        osio.mkdir(str(directory))
    for name, text in (
        (CA, ca.certificate),
        (CA_KEY, ca.key),
        (MEMBER_KEY, member.key),
        (MEMBER, member.certificate),
    ):
        write_file(osio, str(directory / name), text.encode("ascii"))
    osio.fsync_directory(str(data))
    return identity.own_fingerprint(directory)


def become_node(store: Store, number: int, view: View) -> None:
    """The store is clustered and has this number; then the view is there.  Raises OSError."""
    write_identity(Osio(), replace(store, node=number, clustered=True))
    keep(store.data, view)


def keep(data: Path, view: View) -> None:
    """Store a view; a hub that runs uses it within a second or two.

    Raises ClusterError, OsError.
    """
    path = identity.directory(data) / VIEW
    try:
        ViewFile(Osio(), str(path)).keep(view)
    except OSError as error:
        raise OsError.of(error, path) from None
