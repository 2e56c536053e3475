"""The status page in a real browser: its figures are right, on a desktop, on a phone, in dark
mode."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.browser import Browser, need_browser
from tests.support.clients import deliver, fetch, message
from tests.support.hub import DEADLINE, free_ports
from tests.support.live import LiveHub

# Of a message that fills a good part of a log of 1 MiB.
BULK = b"%b\r\n" % (b"x" * 70) * 1200
LOGS = "document.querySelectorAll('#logs .log').length"
# The contrast of every kind of text with the background, as computed by WCAG.
CONTRASTS = """
(() => {
  const part = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b); };
  const style = e => getComputedStyle(e);
  const ground = light(style(document.body).backgroundColor);
  const state = document.querySelector('#state');
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  return [...['body', 'p', '.card span', '.card b', '.about'].map(name =>
    ratio(light(style(document.querySelector(name)).color), ground)),
    ratio(light(style(state).color), light(style(state).backgroundColor))];
})()
"""


@pytest.fixture(scope="module")
def port() -> int:
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def live(port: int) -> Iterator[LiveHub]:
    """A hub with logs that are full, half dead and in use."""
    need_browser()
    settings = f'[metrics]\naddress = "127.0.0.1:{port}"'
    with LiveHub(settings=settings, log_size="1MiB") as hub:
        for number in range(60):
            deliver(hub, message(BULK), "bob" if number % 2 else "alice")
        fetch(hub, "alice", delete=True)
        yield hub


@pytest.fixture(scope="module")
def browser(live: LiveHub, port: int) -> Iterator[Browser]:
    with Browser() as browser:
        browser.view(1200, 900)
        browser.open(f"http://127.0.0.1:{port}/")
        browser.until(LOGS)
        yield browser


def facts(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE)
    connection.request("GET", "/status.json")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def shown(browser: Browser) -> list[list[Any]]:
    """For each log: its texts, the used and live shares of its bar, and where it ends."""
    found: list[list[Any]] = browser.evaluate(
        "[...document.querySelectorAll('#logs .log')].map(e => [e.children[0].textContent,"
        " e.children[2].textContent, ...[...e.querySelectorAll('.bar i')].map(i =>"
        " parseFloat(i.style.width || i.style.left))])"
    )
    return found


def expected(port: int) -> list[list[Any]]:
    found = facts(port)
    size = found["log_size"]
    return [
        [f"log {one['number']}",
         f"generation {one['generation']}, {one['owner'] or one['state']},"
         f" {one['messages']:,} mails",
         *(pytest.approx(100 * share / size, abs=0.01)
           for share in (one["tail"], one["live"], one["tail"]))]
        for one in found["logs"]
    ]  # fmt: skip


def test_each_log_is_a_bar_of_what_is_live_dead_and_unused_with_its_owner(browser, port):
    browser.until(LOGS, lambda count: count == len(facts(port)["logs"]))
    for _ in range(10):  # the collector may run between two looks
        if shown(browser) == expected(port):
            break
        browser.call("Runtime.evaluate", expression="look()", awaitPromise=True)
    logs = shown(browser)
    assert logs == expected(port)
    assert len(logs) >= 4
    assert {"worker 0", "worker 1"} <= {about.split(", ")[1] for _, about, *_ in logs}
    assert any(used > live + 10 for *_, used, live, _ in logs)  # dead mail is visible


@pytest.mark.long
def test_rates_and_latencies_of_the_last_hour_are_drawn(browser, live):
    deliver(live, message(), "carol")
    curves = "[...document.querySelectorAll('#cards path')].map(e => e.getAttribute('d'))"
    # A sample every ten seconds: the first curve takes two.
    browser.until(curves, lambda found: len(found) == 7 and "L" in found[0] + "M" + found[5])
    texts = browser.evaluate("document.querySelector('#cards').innerText")
    assert re.search(r"commit, 99 %\s+≤ [\d.,]+ ms", texts)
    assert "messages since the start\n61" in texts


def test_it_fits_a_desk_and_a_phone_and_can_be_read_in_the_light_and_in_the_dark(browser):
    for width, phone in ((1200, False), (360, True)):
        for dark in (False, True):
            browser.view(width, 800, dark=dark, phone=phone)
            assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
            assert min(browser.evaluate(CONTRASTS)) >= 4.5
            ground = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", ground))) < 384) == dark
    bar = "document.querySelector('.bar').getBoundingClientRect().width"
    assert browser.evaluate(bar) > 150
    browser.view(1200, 900)


def test_it_asks_its_own_listener_alone_and_breaks_no_policy(browser, port):
    assert {url.split("/")[2] for url in browser.requests} == {f"127.0.0.1:{port}"}
    assert [fault for fault in browser.faults if "favicon" not in fault] == []
    text = browser.evaluate("document.documentElement.innerText")
    assert "alice" not in text
    assert "127.0.0.1" not in text


def test_it_tells_when_the_hub_is_gone(browser, live):
    live.stop()
    assert browser.until("document.querySelector('#state').textContent", "no answer".__eq__)
    live.start()
    assert browser.until("document.querySelector('#state').textContent", "serving".__eq__)
