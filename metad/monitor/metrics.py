"""Prometheus metrics of the whole hub, on one page.

Rule of this file: every counter of metad.system.counters appears here automatically; labels are few
and bounded (protocol, reason, result, process, state, generation, certificate).
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from metad import __version__
from metad.config.model import Config
from metad.errors import ConfigError
from metad.monitor.facts import Facts
from metad.monitor.health import REFUSING, SERVING, Report
from metad.store.log_table import Row
from metad.system import counters
from metad.system.counters import Kind
from metad.system.histograms import HISTOGRAMS
from metad.system.node_standing import Obstacle, Short
from metad.tls import store as tls_store

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Names for counters whose own name would not tell Prometheus the unit.
_NAMES = {
    "bytes": "message_bytes",
    "retrieved_bytes": "retrieved_bytes",
    "log_bytes": "log_written_bytes",
    "filter_microseconds": "filter_wait_seconds",
}
_COLLECTOR_NAMES = {
    "left": "collector_logs_left",
    "logs_freed": "collector_freed_logs",
    "bytes_freed": "collector_freed_bytes",
    "bytes_moved": "collector_moved_bytes",
    "failed": "collector_failures",
    "damaged": "collector_damaged",
    "expired": "expired",
    "in_use": "expiry_skipped_mailboxes",
    "unknown": "orphaned_mailboxes",
}


class HubCollector:
    """Computes the metrics at each scrape."""

    def __init__(
        self,
        look: Callable[[], tuple[Facts, Report]],
        config: Callable[[], Config],
        started: float,
    ) -> None:
        """`started`: Unix time."""
        self._look = look
        self._config = config
        self._started = started

    def collect(self) -> Iterator[Metric]:
        facts, report = self._look()
        config = self._config()
        yield from _hub(facts)
        yield from _labelled(facts)
        yield from _histograms(facts)
        yield from _collector(facts)
        yield from _logs(facts, config)
        yield from _disk(config)
        yield from _certificates(config)
        yield from _cluster(facts)
        yield _gauge("up_seconds", "Seconds since the start.", time.time() - self._started)
        yield _gauge("workers", "Running workers.", len(facts.workers))
        yield _gauge("ready", "1 unless new mail is refused.", int(report.state != REFUSING))
        yield _gauge("healthy", "1 while nothing is wrong.", int(report.state == SERVING))
        info = GaugeMetricFamily("metad_info", "The version.", labels=["version"])
        info.add_metric([__version__], 1)
        yield info


def page(collector: HubCollector) -> bytes:
    """The exposition of one scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"metad_{name}", text, value=value)


def _hub(facts: Facts) -> Iterator[Metric]:
    for one in counters.HUB:
        name = _NAMES.get(one.name, one.name)
        doc = one.doc.replace("Microseconds", "Seconds")
        scale = 1e6 if doc != one.doc else 1
        yield CounterMetricFamily(f"metad_{name}", doc, value=facts.totals[one.name] / scale)
    yield CounterMetricFamily(
        "metad_log_lines_dropped", "Log lines that could not be written.",
        value=facts.totals["log_lines_dropped"],
    )  # fmt: skip
    sessions = GaugeMetricFamily("metad_sessions", "Open connections.", labels=["protocol"])
    for protocol in ("smtp", "pop3"):
        sessions.add_metric([protocol], facts.now[f"{protocol}_open"])
    yield sessions


def _labelled(facts: Facts) -> Iterator[Metric]:
    for one in counters.LABELLED:
        family = CounterMetricFamily(f"metad_{one.name}", one.doc, labels=[one.label])
        for value, count in facts.labelled.get(one.name, {}).items():
            family.add_metric([value], count)
        yield family


def _histograms(facts: Facts) -> Iterator[Metric]:
    for shape in HISTOGRAMS:
        family = HistogramMetricFamily(f"metad_{shape.name}", shape.doc, labels=[])
        counts = facts.histograms.get(shape.name)
        if counts is not None:
            bounds = [*(f"{bound / shape.scale:g}" for bound in shape.bounds), "+Inf"]
            running = itertools.accumulate(counts.buckets)
            family.add_metric(
                [], list(zip(bounds, running, strict=True)), counts.total / shape.scale
            )
        yield family


def _collector(facts: Facts) -> Iterator[Metric]:
    for one in counters.COLLECTOR:
        name = _COLLECTOR_NAMES.get(one.name, one.name)
        make = CounterMetricFamily if one.kind is Kind.TOTAL else GaugeMetricFamily
        yield make(f"metad_{name}", one.doc, value=facts.collector[one.name])


def _logs(facts: Facts, config: Config) -> Iterator[Metric]:
    number = GaugeMetricFamily(
        "metad_logs", "Logs by state and generation.", labels=["state", "generation"]
    )
    found = Tally((one.state.name.lower(), str(one.generation)) for one in facts.logs)
    for labels, count in sorted(found.items()):
        number.add_metric(labels, count)
    yield number
    live = GaugeMetricFamily(
        "metad_live_bytes", "Bytes of live mail by generation.", labels=["generation"]
    )
    used = GaugeMetricFamily(
        "metad_used_bytes", "Bytes in use in logs that are not free, by generation.",
        labels=["generation"],
    )  # fmt: skip
    for generation, rows in _by_generation(facts):
        live.add_metric([str(generation)], sum(one.live_octets for one in rows))
        used.add_metric([str(generation)], sum(one.tail for one in rows))
    yield live
    yield used
    yield _gauge("log_size_bytes", "The size of a log.", config.store.log_size)


def _by_generation(facts: Facts) -> Iterable[tuple[int, list[Row]]]:
    groups: dict[int, list[Row]] = {}
    for one in facts.logs:
        if one.state.name != "FREE":
            groups.setdefault(one.generation, []).append(one)
    return sorted(groups.items())


def _disk(config: Config) -> Iterator[Metric]:
    try:
        yield _gauge("disk_free_bytes", "Free on the data directory's file system.",
                     shutil.disk_usage(config.data).free)  # fmt: skip
    except OSError:
        return


def _cluster(facts: Facts) -> Iterator[Metric]:
    """Of a node of a cluster."""
    if not facts.epoch:
        return
    yield _gauge("cluster_epoch", "The epoch of the view in force.", facts.epoch)
    if facts.word_age is not None:
        yield _gauge("cluster_etcd_word_age_seconds", "Since etcd confirmed the view.",
                     facts.word_age)  # fmt: skip
    found = facts.standing
    if found is None:
        return
    takes, lists = found.mail is Obstacle.NONE, found.logins is Obstacle.NONE
    yield _gauge("cluster_takes_mail", "1 unless the cluster keeps this node from taking mail.",
                 int(takes))  # fmt: skip
    yield _gauge("cluster_lists_mail", "1 unless the cluster keeps users from logging in here.",
                 int(lists))  # fmt: skip
    yield _gauge("cluster_members", "Active members.", found.active)
    yield _gauge("cluster_members_up", "Active members that this node reaches, and itself.",
                 found.reached)  # fmt: skip
    yield _gauge("cluster_links_up", "Other members to which this node has a link.", found.linked)
    yield _gauge("cluster_short_of_copies", "1 while some mail may have too few copies.",
                 int(found.short is not Short.NONE))  # fmt: skip


def _certificates(config: Config) -> Iterator[Metric]:
    if not tls_store.wanted(config):
        return
    expiry = GaugeMetricFamily(
        "metad_certificate_expiry_timestamp_seconds", "When each certificate expires.",
        labels=["name"],
    )  # fmt: skip
    try:
        contexts = tls_store.load_contexts(config)
    except ConfigError:
        contexts = None
    for one in contexts.certificates if contexts else ():
        expiry.add_metric([one.name], one.facts.not_after.timestamp())
    yield expiry
