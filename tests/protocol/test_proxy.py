"""PROXY headers: the letter of both versions, every cut, and nothing else."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from metad.protocol.proxy import V1_LIMIT, V2_LIMIT, Header, ProxyError, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"


def v2(command: int, family: int, payload: bytes, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return SIGNATURE + bytes([command, family]) + size.to_bytes(2, "big") + payload


FOUR = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + b"\x12\x34\x00\x19"
SIX = ipaddress.ip_address("2001:db8::1").packed + bytes(16) + b"\x12\x34\x00\x19"
MAPPED = ipaddress.ip_address("::ffff:192.0.2.9").packed + bytes(16) + bytes(4)

GOOD = [
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 25\r\n", "192.0.2.1"),
    (b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255"),
    (b"PROXY TCP4 192.0.2.1 198.51.100.2 0 0\r\n", "192.0.2.1"),
    (b"PROXY TCP6 2001:DB8::0:1 ::1 1 2\r\n", "2001:db8::1"),
    (b"PROXY TCP6 ::ffff:192.0.2.7 ::1 1 2\r\n", "192.0.2.7"),
    (b"PROXY UNKNOWN\r\n", None),
    (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n", None),
    (v2(0x21, 0x11, FOUR), "192.0.2.1"),
    (v2(0x21, 0x11, FOUR + b"\x04\x00\x02ab"), "192.0.2.1"),
    (v2(0x21, 0x21, SIX), "2001:db8::1"),
    (v2(0x21, 0x21, MAPPED), "192.0.2.9"),
    (v2(0x21, 0x00, b""), None),
    (v2(0x21, 0x31, bytes(216)), None),
    (v2(0x20, 0x00, b""), None),
    (v2(0x20, 0x11, FOUR), None),
    (v2(0x20, 0xFF, b"x"), None),
]

BAD = [
    b"EHLO client\r\n",
    b"GET / HTTP/1.1\r\n",
    b"proxy TCP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2\n",
    b"PROXY TCP4  192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1 2 \r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 1\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 01 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 2\r\n",
    b"PROXY TCP4 192.0.2.01 198.51.100.2 1 2\r\n",
    b"PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
    b"PROXY TCP6 192.0.2.1 ::1 1 2\r\n",
    b"PROXY TCP4 192.0.2.1 198.51.100.999 1 2\r\n",
    b"PROXY UDP4 192.0.2.1 198.51.100.2 1 2\r\n",
    b"PROXY UNKNOWN\x00\r\n",
    b"PROXY \r\n",
    b"PROXY " + b"x" * V1_LIMIT,
    v2(0x22, 0x11, FOUR),
    v2(0x11, 0x11, FOUR),
    v2(0x21, 0x12, FOUR),
    v2(0x21, 0x41, FOUR),
    v2(0x21, 0x11, FOUR[:-1]),
    v2(0x21, 0x21, FOUR),
    v2(0x21, 0x31, bytes(215)),
    v2(0x21, 0x11, FOUR, V2_LIMIT + 1),
    SIGNATURE[:-1] + b"\r" + bytes(4),
]


@pytest.mark.parametrize(("octets", "client"), GOOD)
def test_a_header_gives_its_client_however_it_is_cut(octets: bytes, client: str | None) -> None:
    for cut in range(len(octets)):
        assert parse(octets[:cut]) is None
    assert parse(octets) == Header(len(octets), client)
    assert parse(octets + b"EHLO client\r\n") == Header(len(octets), client)


@pytest.mark.parametrize("octets", BAD)
def test_what_is_no_header_is_refused_and_stays_refused(octets: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(octets)
    with pytest.raises(ProxyError):
        parse(octets + b"more\r\n")


def test_a_line_that_does_not_end_is_refused_at_its_limit_not_before() -> None:
    line = b"PROXY UNKNOWN ".ljust(V1_LIMIT - 1, b"x")
    assert parse(line) is None
    with pytest.raises(ProxyError):
        parse(line + b"x")
    assert parse(line[:-1] + b"\r\n") == Header(V1_LIMIT, None)


def test_the_longest_header_of_version_2_is_taken() -> None:
    octets = v2(0x21, 0x11, FOUR.ljust(V2_LIMIT, b"\0"))
    assert parse(octets) == Header(16 + V2_LIMIT, "192.0.2.1")


octets_like_a_header = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda tail: b"PROXY " + tail, st.binary(max_size=120)),
    st.builds(lambda tail: SIGNATURE + tail, st.binary(max_size=300)),
    st.builds(
        lambda good, at, octet: good[:at] + bytes([octet]) + good[at + 1 :],
        st.sampled_from([octets for octets, _ in GOOD]),
        st.integers(0, 40),
        st.integers(0, 255),
    ),
)


def outcome(octets: bytes) -> Header | str | None:
    try:
        return parse(octets)
    except ProxyError:
        return "refused"


@pytest.mark.slow
@given(octets_like_a_header)
@example(b"")
def test_no_input_raises_and_a_verdict_once_given_stays(octets: bytes) -> None:
    verdict = None
    for end in range(len(octets) + 1):
        now = outcome(octets[:end])
        assert verdict is None or now == verdict
        verdict = now
    if isinstance(verdict, Header):
        assert verdict.length <= 16 + V2_LIMIT
        assert verdict.client is None or ipaddress.ip_address(verdict.client)
