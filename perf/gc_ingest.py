"""The cost of the collector for senders: ingest with the collector running beside ingest without.

One hub, rounds in turns: A, the collector rests; B, `metad gc --full` works on logs of which half
is dead.  Before each B, half of the mail is deleted by POP3, so that there is garbage.  The result
is the ratio B / A of one run.  `worked` is the share of the samples in which the collector was
running: it may finish before the end of B.

    python -m perf.gc_ingest                            five rounds of 60,000 messages of 500 octets
    python -m perf.gc_ingest --rounds 2 --messages 5000 a quick look

Prints, and writes perf/results/gc-ingest-DATE.json.
"""

from __future__ import annotations

import argparse
import json
import poplib
import statistics
import threading
import time
from pathlib import Path
from typing import Any

from metad.control_client import Client
from perf import harness
from perf.compare import LoadFailedError
from perf.harness import HubOptions, Server
from perf.smtp_load import SmtpLoad, SmtpRun

USERS = tuple(f"user{number}@perf.example" for number in range(20))
RESULTS = Path(__file__).parent / "results"
SETTINGS = "[collector]\nidle_seconds = 86400\n"
SAMPLE_SECONDS = 0.05


class Watched:
    """Requests a full collection and watches it while a load runs."""

    def __init__(self, data: Path) -> None:
        self._client = Client(data)
        self._before = self._client.request("gc", full=True)
        self._ended = threading.Event()
        self._samples: list[bool] = []
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def _look(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            done = self._client.request("gc-progress")["done"]
            self._samples.append(done < self._before["round"])

    def end(self) -> dict[str, Any]:
        """What the collector did while the load ran; waits for the end of its round."""
        self._ended.set()
        self._thread.join()
        now = self._client.request("gc-progress")
        facts = {
            "worked": round(sum(self._samples) / max(len(self._samples), 1), 3),
            "logs_freed": now["logs_freed"] - self._before["logs_freed"],
            "bytes_moved": now["bytes_moved"] - self._before["bytes_moved"],
        }
        while self._client.request("gc-progress")["done"] < self._before["round"]:
            time.sleep(SAMPLE_SECONDS)
        self._client.__exit__()
        return facts


def ingest(server: Server, options: argparse.Namespace) -> dict[str, Any]:
    """One load: messages per second, and its latencies."""
    load = SmtpLoad(
        "127.0.0.1", server.smtp, USERS, options.connections, options.messages, options.size
    )
    report = SmtpRun(load).run()
    if report.error_count or report.count != options.messages:
        raise LoadFailedError(report.text())
    return {"rate": round(report.rate, 1), "latency_ms": report.percentiles()}


def halve(server: Server) -> None:
    """Delete every second message of each mailbox."""
    for user in USERS:
        pop = poplib.POP3("127.0.0.1", server.pop3, timeout=60)
        pop.user(user)
        pop.pass_(harness.PASSWORD)
        count = pop.stat()[0]
        for first in range(1, count + 1, 200):
            some = range(first, min(first + 200, count + 1), 2)
            pop.sock.sendall(b"".join(b"DELE %d\r\n" % number for number in some))
            for _ in some:
                if not pop.file.readline().startswith(b"+OK"):
                    raise LoadFailedError("a DELE was refused")
        pop.quit()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rounds: list[dict[str, Any]] = []
    hub = HubOptions(options.workers, users=USERS, log_size=options.log_size, more=SETTINGS)
    with harness.directory(options.directory) as where, harness.hub(where, hub) as server:
        machine = harness.machine(where)
        ingest(server, options)  # warm, and mail for the first B
        for _ in range(options.rounds):
            without = ingest(server, options)
            halve(server)
            watched = Watched(where / "data")
            with_it = ingest(server, options)
            rounds.append({"without": without, "with": with_it, "collector": watched.end()})
    ratios = [one["with"]["rate"] / one["without"]["rate"] for one in rounds]
    return {
        "machine": machine,
        "options": {k: v for k, v in vars(options).items() if k not in ("results", "directory")},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "rounds": rounds,
    }


def text(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [f"{' '.join(machine['command'])}   {machine['date']}   {machine['cpu']}"]
    for one in found["rounds"]:
        a, b, did = one["without"], one["with"], one["collector"]
        lines.append(
            f"without {a['rate']:,.0f}/s (p99 {a['latency_ms']['p99']} ms, max "
            f"{a['latency_ms']['max']})   with {b['rate']:,.0f}/s (p99 {b['latency_ms']['p99']} "
            f"ms, max {b['latency_ms']['max']})   collector at work {did['worked']:.0%}, "
            f"{did['logs_freed']} logs freed, {did['bytes_moved'] / 1e6:.0f} MB moved"
        )
    lines.append(f"ratio: {found['ratio']} (median of {found['ratios']})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ingest with and without the collector.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=60_000)
    parser.add_argument("--size", type=int, default=500)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--log-size", default="4MiB")
    parser.add_argument("--directory", help="where the hub's data are put; else the default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    found = measure(options)
    print(text(found))
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"gc-ingest-{found['machine']['date'][:10]}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
