"""The effect of full logs on clients: commit latency with many seals and with none.

The same load on two hubs in turns: one with small logs, sealed and switched many times a run, one
with logs that one run does not fill.  Printed and written to perf/results/: p50, p99, p99.9 and the
greatest time from final dot to 250, in milliseconds, median of the rounds.

    python -m perf.seal_latency [--rounds 3] [--messages 40000] [--connections 20]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf import harness
from perf.compare import SIZE, USERS, LoadFailedError
from perf.harness import HubOptions, Server
from perf.smtp_load import SmtpLoad, SmtpRun

RESULTS = Path(__file__).parent / "results"
KINDS = {"many seals": "8MiB", "no seals": "1GiB"}
OCTETS_PER_MESSAGE = 1000
QUANTILES = ("p50", "p99", "p99.9", "max")


def one_run(server: Server, options: argparse.Namespace) -> dict[str, float]:
    load = SmtpLoad(
        "127.0.0.1", server.smtp, USERS, options.connections, options.messages, SIZE, False
    )
    report = SmtpRun(load).run()
    if report.error_count:
        raise LoadFailedError(report.text())
    figures: dict[str, float] = report.facts()["latency_ms"]
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        where = stack.enter_context(harness.directory(options.directory))
        servers = {}
        for number, (kind, log_size) in enumerate(KINDS.items()):
            place = where / str(number)
            place.mkdir(mode=0o755)
            hub = HubOptions(users=USERS, log_size=log_size)
            servers[kind] = stack.enter_context(harness.hub(place, hub))
        for _ in range(options.rounds):
            for kind, server in servers.items():
                rounds[kind].append(one_run(server, options))
        machine = harness.machine(where)
    seals = options.messages * OCTETS_PER_MESSAGE // (8 << 20)
    return {
        "machine": machine,
        "messages": options.messages,
        "connections": options.connections,
        "seals_per_run_about": seals,
        "latency_ms": {
            kind: {
                name: {
                    "median": statistics.median(run[name] for run in runs),
                    "min": min(run[name] for run in runs),
                    "max": max(run[name] for run in runs),
                }
                for name in QUANTILES
            }
            for kind, runs in rounds.items()
        },
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--messages", type=int, default=40_000)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--directory", help="on the file system to measure")
    options = parser.parse_args()
    result = measure(options)
    for kind, figures in result["latency_ms"].items():
        print(f"{kind:12}", *(f"{name} {figures[name]['median']:.2f}" for name in QUANTILES))
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"seal-latency-{result['machine']['date'][:10]}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
