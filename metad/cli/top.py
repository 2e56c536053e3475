"""`metad top`: a running hub, live: rates, latencies, sessions, the collector, each log as a bar.

Rules of this file:

* It shows the difference between two samples; the hub stores nothing for it.
* It fits 80 columns and the height of the terminal: active logs come first.
"""

from __future__ import annotations

import json
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from metad.cli import tables
from metad.cli.context import HubLocation, finite, hub_options
from metad.control_client import request
from metad.errors import EX_OK, UnavailableError
from metad.system import histograms
from metad.system.histograms import Counts, Shape, quantile

WIDTH = 80
BAR = 32
LIVE, DEAD, FREE = "#", "-", "."
_RATES = ("messages", "bytes", "recipients", "refused", "logins", "retrieved", "deleted")
_KEPT = (
    "version", "state", "since", "problems", "uptime", "now", "workers", "collector", "disk_free",
    "log_size", "free_logs", "hidden_logs", "logs", "totals",
)  # fmt: skip
_SHAPES = {one.name: one for one in histograms.HISTOGRAMS}
Facts = dict[str, Any]


@click.command()
@hub_options
@click.option(
    "--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, metavar="S",
    callback=finite, help="Seconds between two looks.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print one screen and end, as into a pipe.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; implies --once.")
def top(place: HubLocation, interval: float, once: bool, as_json: bool) -> int:
    """Watch a running hub: rates, latencies, sessions, the collector, and each log as a bar.

    In a bar, # is mail that is in a mailbox, - is garbage, and . is free.  Rates are those since
    the last look, latencies the bounds below which half and 99 % of the commits ended.  ^C ends it.

    \b
    Example:
      metad top --interval 5
      metad top --once --json
    """
    data = place.enter()
    if once or as_json or not tables.terminal():
        before = _look(data)
        _sleep(interval)
        facts = figures(before, _look(data))
        if as_json:
            click.echo(json.dumps(facts, indent=2))
        else:
            click.echo("\n".join(screen(facts, 1 << 30)))
        return EX_OK
    try:
        _live(data, interval)
    except KeyboardInterrupt:
        pass
    return EX_OK


def _look(data: Path) -> Facts:
    return request(data, "figures") | {"at": time.monotonic()}


def _sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


def _live(data: Path, interval: float) -> None:
    """Run until ^C; wait for a hub that restarts."""
    # Imported here: importing rich takes longer than most commands run.
    from rich.console import Console
    from rich.live import Live

    console = Console()
    before = _look(data)  # without a hub the command ends here
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            try:
                now = _look(data)
                lines = screen(figures(before, now), console.height)
                before = now
            except UnavailableError as error:
                lines = [f"{error}: waiting for it"]
            live.update(_coloured(lines), refresh=True)
            _sleep(interval)


def _coloured(lines: list[str]) -> Any:
    """The bars in colours, if the terminal and NO_COLOR permit."""
    from rich.text import Text

    text = Text("\n".join(lines), no_wrap=True, overflow="crop")
    text.highlight_regex(rf"(?<=\[)[{LIVE}]+", "green")
    text.highlight_regex(rf"(?<=[\[{LIVE}])[{DEAD}]+(?=[\].])", "red")
    text.highlight_regex(r"^(degraded|refusing|problem: .*)", "bold red")
    return text


# --- Figures --------------------------------------------------------------------------------------


def figures(before: Facts, now: Facts) -> Facts:
    """The figures shown, from two samples."""
    seconds = max(now["at"] - before["at"], 0.001)
    grown = {name: now["totals"][name] - before["totals"][name] for name in _RATES}
    rates = {name: round(max(value, 0) / seconds, 1) for name, value in grown.items()}
    kept = {key: now[key] for key in _KEPT}
    moved = now["collector"]["bytes_moved"] - before["collector"]["bytes_moved"]
    return {
        **kept,
        "rates": rates,
        "moved_per_second": round(max(moved, 0) / seconds, 1),
        "latencies": {name: _latency(before, now, one) for name, one in _SHAPES.items()},
    }


def _latency(before: Facts, now: Facts, shape: Shape) -> dict[str, float | None]:
    since = _counts(now, shape) - _counts(before, shape)
    return {"half": quantile(since, shape, 0.5), "most": quantile(since, shape, 0.99)}


def _counts(facts: Facts, shape: Shape) -> Counts:
    buckets, total = facts["histograms"][shape.name]
    return Counts(tuple(buckets), total)


# --- The screen -----------------------------------------------------------------------------------


def screen(facts: Facts, height: int) -> list[str]:
    """At most `height` lines of at most 80 characters."""
    lines = [line[:WIDTH] for line in _head(facts)]
    logs = facts["logs"]
    room = max(height - len(lines) - 1, 0)
    shown = logs if len(logs) <= room else logs[: max(room - 1, 0)]
    lines += [_bar(one, facts["log_size"]) for one in shown]
    hidden = len(logs) - len(shown) + facts["hidden_logs"]
    if hidden:
        lines.append(f"{hidden:,} more logs")
    return lines[:height]


def _head(facts: Facts) -> Iterator[str]:
    rates, now, collector = facts["rates"], facts["now"], facts["collector"]
    yield (
        f"{facts['state']}, up {tables.duration(facts['uptime'])}, metad {facts['version']}, "
        f"{facts['workers']} workers, {_size(facts['disk_free'])} free"
    )
    for one in facts["problems"]:
        yield f"problem: {one['problem']}"
    yield (
        f"sessions   smtp {now.get('smtp_open', 0):,}   pop3 {now.get('pop3_open', 0):,}   "
        f"logins {rates['logins']:,}/s"
    )
    yield (
        f"mail in    {rates['messages']:,} messages/s   {_size(rates['bytes'])}/s   refused "
        f"{rates['refused']:,}/s"
    )
    yield f"mail out   {rates['retrieved']:,} messages/s   deleted {rates['deleted']:,}/s"
    commit, sync, group = (
        facts["latencies"][name] for name in ("commit_seconds", "sync_seconds", "group_records")
    )
    yield (
        f"commit     half {_ms(commit['half'])}, 99 % {_ms(commit['most'])}   sync half "
        f"{_ms(sync['half'])}   group half {_count(group['half'])}"
    )
    moved, freed = _size(facts["moved_per_second"]), collector["logs_freed"]
    yield (
        f"collector  {moved}/s moved   freed {freed:,} logs   expired {collector['expired']:,}   "
        f"to do {collector['left']:,}"
    )
    used = len(facts["logs"]) + facts["hidden_logs"]
    yield f"logs       {used:,} used, {facts['free_logs']:,} free"


def _bar(one: Facts, size: int) -> str:
    """A log: its live, dead and free parts."""
    live = round(BAR * one["live"] / size) if size else 0
    used = max(round(BAR * one["tail"] / size) if size else 0, live)
    bar = LIVE * live + DEAD * (used - live) + FREE * (BAR - used)
    share = 100 * one["live"] // size if size else 0
    return (
        f"{one['number']:>6} {one['state']:<10} g{one['generation']} [{bar}] {share:>3} % live "
        f"{one['owner']}"
    )[:WIDTH].rstrip()


def _size(octets: float) -> str:
    """1.2 MiB: for people, three digits."""
    value = float(octets)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"≤ {1000 * seconds:g} ms"


def _count(value: float | None) -> str:
    return "-" if value is None else f"≤ {value:g}"
