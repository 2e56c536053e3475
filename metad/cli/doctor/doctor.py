"""`metad doctor`.

Rules of this file:

* Checks only look, and change nothing; a check that itself fails is a warning, not a crash.
* Things that only the caller may see (the configuration, ports below 1024) are examined before the
  command becomes the owner of the data.
"""

from __future__ import annotations

import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import click

from metad.cli.context import HubLocation, hub_options, is_there, json_option
from metad.cli.doctor import machine, names, service
from metad.cli.doctor.result import Level, Result, error, ok, warning
from metad.cli.locked import check_unlocked
from metad.cli.preflight import preflight
from metad.config.model import Config, Listener
from metad.control_client import request
from metad.errors import MetadError, NotPermittedError, UnavailableError
from metad.users.database import UserDatabase

Check = Callable[[], Iterable[Result]]
_WORDS = {Level.OK: "ok", Level.WARNING: "warning", Level.ERROR: "error"}
_COLOURS = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}
# For the name of the configuration; a hub that is silent is a finding of its own.
ASK_SECONDS = 2.0
_WIDTH = 80
_INDENT = " " * 9


@click.command()
@hub_options
@click.option("--no-dns", is_flag=True, help="Ask no name server.")
@click.option("-q", "--quiet", is_flag=True, help="Show only what is wrong.")
@json_option
def doctor(place: HubLocation, no_dns: bool, quiet: bool, as_json: bool) -> int:
    """Examine the machine, the configuration and the data, and name a remedy for each finding.

    It looks at the hub, its ports and certificates, the other nodes of its cluster, the host name,
    MX and PTR records, permissions, the disk (what it has, and below what new mail is deferred),
    the clock, what a killed hub left, and whether this is a clone of another machine.  It changes
    nothing.

    Exit code 0 if all is well, 1 for warnings, 2 for errors.

    \b
    Example:
      metad doctor --quiet
    """
    worst = Level.OK
    facts = []
    for one in chain.from_iterable(examination(place, dns=not no_dns)):
        worst = max(worst, one.level)
        if not one.level and quiet:
            continue
        if not as_json:
            show(one)  # at once: a name server may take long
        facts.append(one._asdict() | {"level": _WORDS[one.level]})
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    return int(worst)


def show(one: Result) -> None:
    """One finding within 80 columns."""
    head = f"{_WORDS[one.level]:<8}"
    if "NO_COLOR" not in os.environ:
        head = click.style(head, fg=_COLOURS[one.level])
    text = textwrap.wrap(f"{one.check}: {one.text}", _WIDTH - len(_INDENT))
    click.echo(f"{head} {text[0]}")
    more = text[1:]
    if one.remedy:
        more += textwrap.wrap(f"to do: {one.remedy}", _WIDTH - len(_INDENT))
    for line in more:
        click.echo(_INDENT + line)


def examination(place: HubLocation, *, dns: bool) -> Iterator[Iterable[Result]]:
    """The findings of each check in turn."""
    place = _of_running(place)
    try:
        config = place.config
    except MetadError as problem:
        yield [error("configuration", str(problem), problem.remedy)]
        return
    yield _done("configuration", lambda: check_configuration(config))
    try:
        if not is_there(config.data):
            yield [warning("data", f"{config.data} does not exist", "metad user add makes it")]
            return
        data = place.enter()
    except NotPermittedError as problem:
        yield [error("data", str(problem), problem.remedy)]
        return
    facts = _ask(data, "status")
    yield _done("hub", lambda: _check_hub(data, facts))
    if facts is not None:
        yield _done("ports", lambda: service.check_ports(config, facts))
    if config.cluster.address is not None:
        yield _done("cluster", lambda: _of_cluster(config, data, facts))
    yield _done("certificate", lambda: service.check_certificates(config))
    if dns:
        public = any(map(_is_mx, config.listen))
        yield _done("DNS", lambda: names.check_names(config, _domains(data), is_mx=public))
    yield from _of_machine(config, data, facts)


def _of_running(place: HubLocation) -> HubLocation:
    """The same hub, with the configuration that it was started with if no other one is given."""
    if place.file is not None:
        return place
    try:
        source = request(place.data, "status", ASK_SECONDS).get("config")
    except MetadError:
        return place
    if not isinstance(source, str) or not os.access(source, os.R_OK):
        return place
    return HubLocation(place.data, Path(source))


def _of_cluster(config: Config, data: Path, facts: dict[str, Any] | None) -> Iterable[Result]:
    from metad.cli.doctor.cluster import check_cluster

    return check_cluster(config.cluster, data, running=facts is not None)


def _of_machine(
    config: Config, data: Path, facts: dict[str, Any] | None
) -> Iterator[Iterable[Result]]:
    running = facts is not None
    yield _done("permissions", lambda: machine.check_permissions(data))
    yield _done("disk", lambda: machine.check_disk(config, data))
    yield _done("clock", lambda: machine.check_clock(_ask(data, "time")))
    try:
        store = machine.store_of(data)
    except MetadError as problem:
        yield [error("store", str(problem), problem.remedy)]
        return
    if store is not None:
        yield _done("leftovers", lambda: machine.check_leftovers(store, running=running))
        yield _done("clone", lambda: machine.check_clone(store, running=running))


def _done(name: str, check: Check) -> Iterator[Result]:
    """The findings of a check; one that fails is itself a finding."""
    try:
        yield from check()
    except Exception as problem:
        text = getattr(problem, "strerror", None) or str(problem) or repr(problem)
        yield warning(name, f"could not be looked at: {text}", "run it as root, or see why")


def check_configuration(config: Config) -> Iterator[Result]:
    """The findings of `metad config check`."""
    found = list(preflight(config))
    for one in found:
        make = error if one.fatal else warning
        yield make("configuration", one.text, one.remedy or "see metad.toml(5)")
    if not found:
        yield ok("configuration", f"{config.source or 'the defaults apply'}")


def _check_hub(data: Path, facts: dict[str, Any] | None) -> Iterator[Result]:
    try:
        if facts is None:
            check_unlocked(data)
    except UnavailableError as problem:
        what = "the log says why; kill -9 that process and metad start, which loses no mail"
        yield error("hub", f"{problem}, and does not answer", what)
        return
    yield from service.check_hub(facts)


def _ask(data: Path, command: str) -> dict[str, Any] | None:
    try:
        return request(data, command)
    except UnavailableError:
        return None


def _is_mx(listener: Listener) -> bool:
    """Whether other mail servers connect to it: SMTP on port 25."""
    return listener.protocol == "smtp" and listener.port == 25


def _domains(data: Path) -> list[str]:
    if not (data / "users").exists():
        return []
    with UserDatabase(data / "users") as database:
        return database.domains(names.MOST_DOMAINS + 1)
