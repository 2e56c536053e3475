"""`metad user set | show | alias`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import F, HubLocation, hub_options, json_option
from metad.cli.mail.mailstore import usage_of
from metad.cli.user.users import open_users, said, user
from metad.config import checks
from metad.errors import DataError, MetadError, NoSuchUserError, UsageError
from metad.users import directory_client, hashes
from metad.users.account import MAX_COUNT, MAX_QUOTA, MAX_SCORE, Account, Alias, Policy
from metad.users.database import UserDatabase
from metad.users.last_logins import LastLogins
from metad.users.lookup import alias_key, alias_name
from metad.users.policy import Policies

# The words for "no limit" and "the default".
_NONE = {"none", "never", "0"}
_DEFAULT = "default"
_SWITCH = {"on": 1, "off": 0}
_COUNT = re.compile(r"[0-9]{1,10}", re.ASCII)


def _option(name: str, metavar: str, check: checks.Check, text: str) -> Callable[[F], F]:
    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None or value == _DEFAULT:
            return value
        try:
            return 0 if value in _NONE else check(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return click.option(name, metavar=f"{metavar}|none|default", callback=read, help=text)


def _score(name: str, text: str) -> Callable[[F], F]:
    """A score; "none" is one that no message reaches."""

    def read(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Any:
        if value is None or value == _DEFAULT:
            return value
        try:
            return MAX_SCORE if value == "none" else checks.score(float(value))
        except ValueError:
            raise click.BadParameter("must be a number from 0 to 1,000") from None

    return click.option(name, metavar="SCORE|none|default", callback=read, help=text)


def _count(value: object) -> int:
    if not _COUNT.fullmatch(str(value)) or not 1 <= int(str(value)) <= MAX_COUNT:
        raise ValueError("must be a number of messages")
    return int(str(value))


@user.command("set")
@click.argument("address")
@hub_options
@_option("--quota", "SIZE", checks.size(1, MAX_QUOTA), 'Most bytes it may hold, such as "1GiB".')
@_option("--messages", "N", _count, "The most messages it may hold.")
@_option("--expiry", "TIME", checks.duration(60, MAX_COUNT), 'Delete its mail at this age ("90d").')
@_score("--spam-mark", "The spam score at which its mail is marked.")
@_score("--spam-refuse", "The spam score at which its mail is refused.")
@click.option(
    "--spam-filter",
    metavar="on|off|default",
    type=click.Choice(["on", "off", _DEFAULT]),
    callback=lambda _context, _parameter, value: _SWITCH.get(value, value),
    help="Whether filters refuse and mark its mail.",
)
@_option("--login-delay", "TIME", checks.duration(1, 86_400), "Least time between two logins.")
@click.option(
    "--disable/--enable", "disabled", default=None, help="Refuse or accept mail and logins."
)
@json_option
def set_user(
    place: HubLocation, address: str, disabled: bool | None, as_json: bool, **given: Any
) -> None:
    """Change a mailbox's limits; `default` follows the configuration.

    \b
    Example:
      metad user set alice@example.org --quota 1GiB --expiry 90d
    """
    changes = {
        name: None if value == _DEFAULT else value
        for name, value in given.items()
        if value is not None
    }
    if not changes and disabled is None:
        raise UsageError(
            "there is nothing to set", remedy="metad user set --help shows what can be set"
        )
    with open_users(place) as database:
        account = _existing(database, address)
        if changes:
            account = database.change_policy(address, changes)
        if disabled is not None:
            account = database.set_disabled(address, disabled)
    said(account, f"changed {account.address}", as_json)


def _existing(database: UserDatabase, address: str) -> Account:
    try:
        account = database.account(address)
    except MetadError:
        account = None
    if account is None:
        raise NoSuchUserError(f"{address}: no such user")
    return account


@user.command()
@click.argument("address")
@hub_options
@json_option
def show(place: HubLocation, address: str, as_json: bool) -> None:
    """Show a mailbox: usage, quota, last login, aliases; or the members of an alias.

    \b
    Example:
      metad user show alice@example.org
    """
    policies = Policies(place.config)
    data = place.enter()
    with UserDatabase(data / "users") as database:
        try:
            account = _existing(database, address)
        except NoSuchUserError:
            alias = _alias(database, address)
            if alias is None:
                raise
            said(alias, f"{alias.address}: {', '.join(alias.members)}", as_json)
            return
        facts = _facts(data, database, account, policies)
    if as_json:
        click.echo(json.dumps(facts, ensure_ascii=False))
    else:
        tables.show_facts(_readable(facts))


def _alias(database: UserDatabase, address: str) -> Alias | None:
    try:
        return database.alias(address)
    except DataError:
        return None


def _facts(
    data: Path, database: UserDatabase, account: Account, policies: Policies
) -> dict[str, Any]:
    """Sizes in bytes, times in seconds and Unix time; 0: no limit, null: unknown."""
    record = database.record(account.address)
    usage = usage_of(data, account.id)
    logins = LastLogins(data / "users", readonly=True)
    last_login = logins.last(account.id)
    logins.close()
    policy = policies.of(account)
    return {
        "address": account.address,
        "mailbox": account.id,
        "disabled": account.disabled,
        "password": _password(record),
        "bytes": usage.octets if usage else None,
        "messages": usage.messages if usage else None,
        "quota": policy.quota,
        "quota_messages": policy.messages,
        "expiry": policy.expiry,
        "login_delay": policy.login_delay,
        "spam_filter": None if policy.spam_filter is None else bool(policy.spam_filter),
        "spam_mark": None if policy.spam_mark is None else policy.spam_mark / 100,
        "spam_refuse": None if policy.spam_refuse is None else policy.spam_refuse / 100,
        "own": [
            n for n, one in zip(Policy._fields, account.policy, strict=True) if one is not None
        ],
        "last_login": last_login,
        "created": record.get("created"),
        "aliases": database.named_by(account.address),
    }


def _password(record: dict[str, Any]) -> str | None:
    """The form in which the password is stored."""
    kinds = [hashes.scheme_of(record["hash"])] if "hash" in record else []
    kinds += ["SCRAM-SHA-256"] if "scram" in record else []
    return ", ".join(kinds) or None


def _readable(facts: dict[str, Any]) -> dict[str, Any]:
    """The same for people."""
    own = set(facts["own"])

    def bound(name: str, value: int, shown: str, nothing: str) -> str:
        default = "" if name in own else " (default)"
        return (shown if value else nothing) + default

    shown = {key: facts[key] for key in ("address", "mailbox", "disabled", "password")}
    octets, messages = facts["bytes"], facts["messages"]
    shown["holds"] = None if octets is None else f"{messages:,} messages, {octets:,} bytes"
    quota, most = facts["quota"], facts["quota_messages"]
    shown["quota"] = bound("quota", quota, checks.show_size(quota), "none")
    shown["quota of messages"] = bound("messages", most, f"{most:,}", "none")
    expiry, delay = facts["expiry"], facts["login_delay"]
    shown["expiry"] = bound("expiry", expiry, checks.show_duration(expiry), "never")
    shown["login delay"] = bound("login_delay", delay, checks.show_duration(delay), "none")
    shown["spam"] = _spam(facts)
    for name in ("last_login", "created"):
        shown[name.replace("_", " ")] = _date(facts[name])
    return shown | {"aliases": facts["aliases"]}


def _spam(facts: dict[str, Any]) -> str:
    """The settings of filters for its mail."""
    if facts["spam_filter"] is False:
        return "filter off"
    own = [
        f"{word} at {facts[name]:g}" if facts[name] * 100 < MAX_SCORE else f"never {word}"
        for name, word in (("spam_mark", "marked"), ("spam_refuse", "refused"))
        if facts[name] is not None
    ]
    return ", ".join(own) or "as the filter decides (default)"


def _date(seconds: int | None) -> str | None:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else None


@user.command()
@click.argument("address")
@click.argument("members", nargs=-1)
@hub_options
@click.option("--add", "how", flag_value="add", help="Add these members to the present ones.")
@click.option(
    "--delete", "how", flag_value="delete", help="Remove these members; without any, the alias."
)
@click.option("--force", is_flag=True, help="Delete it even if other aliases name it.")
@json_option
def alias(
    place: HubLocation, address: str, members: tuple[str, ...], *, how: str | None, force: bool,
    as_json: bool,
) -> None:  # fmt: skip
    """Make ADDRESS an alias of MEMBERS; without any, show its members.

    "@example.org" is the catch-all of a domain.  Members are addresses of this hub.

    \b
    Example:
      metad user alias sales@example.org alice@example.org bob@example.org
    """
    if how == "add" and not members:
        raise UsageError("--add takes members")
    making = bool(members) and how is None
    data = place.make() if making else place.enter()
    with directory_client.open_users(data / "users", create=making) as database:
        old = database.alias(address)
        if old is None and not making:
            raise NoSuchUserError(
                f"{address}: no such alias", remedy="metad user list --aliases shows them"
            )
        if how == "delete" and not members:
            gone = database.remove_alias(address, force=force)
            said(gone, f"removed {gone.address}", as_json)
            return
        made = old
        if members:
            made = database.change_alias(address, lambda now: _members(now, members, how))
    if made is not None:
        said(made, f"{made.address}: {', '.join(made.members)}", as_json)


def _members(old: tuple[str, ...], given: tuple[str, ...], how: str | None) -> tuple[str, ...]:
    if how is None:
        return given
    if how == "add":
        return (*old, *given)
    gone = {alias_name(alias_key(member)) for member in given}
    left = tuple(one for one in old if one not in gone)
    if not left:
        raise DataError("an alias has a member", remedy="--delete without members deletes it whole")
    return left
