"""Messages decoded from the wire format: whole, cut anywhere, and invalid."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metad.layers.texts import Unstuffer, unstuffed

LINES = st.lists(
    st.sampled_from([b"", b".", b"..", b".x", b"x", b"x.", b"\r", b"xx\ry"]), max_size=8
)


def wire_of(lines):
    message = b"".join(line + b"\r\n" for line in lines)
    return message, re.sub(rb"(?m)^\.", b"..", message) + b".\r\n"


@pytest.mark.slow
@given(lines=LINES, cuts=st.lists(st.integers(0, 60)), lf=st.booleans())
def test_every_cut_gives_the_message(lines, cuts, lf):
    lines = [line for line in lines if b"\r" not in line] if lf else lines
    # A line ends in LF: only the regular expression stuffs after a bare CR.
    message = b"".join(line + b"\r\n" for line in lines)
    wire = b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines)
    wire += b".\r\n"
    edges = sorted({0, len(wire), *(cut for cut in cuts if cut < len(wire))})
    pieces = [wire[a:b] for a, b in pairwise(edges)]
    wanted = message.replace(b"\r\n", b"\n") if lf else message
    assert b"".join(unstuffed(pieces, lf=lf)) == wanted


def test_a_bare_cr_stays_what_it_is():
    _, wire = wire_of([b"a\rb"])
    assert b"".join(unstuffed([wire[:2], wire[2:]], lf=True)) == b"a\rb\n"


@pytest.mark.parametrize("wire", [b"", b"x\r\n", b"x.\r\n", b"x\r\n.\r", b"x\n.\r\n", b"..\r\n"])
def test_what_does_not_end_is_an_error(wire):
    unstuffer = Unstuffer(lf=True)
    unstuffer.feed(wire)
    with pytest.raises(ValueError, match="without its end"):
        unstuffer.finish()
