"""Fuzz targets of the cluster: frames, and a link with a member that sends anything."""

from __future__ import annotations

from collections.abc import Callable

from metad.cluster import frames
from metad.cluster.frames import Decoder, FrameError
from metad.cluster.link import Link
from metad.cluster.view import Membership
from tests.cluster.link_kit import Clock, End, Station
from tests.cluster.views import make_member, make_view
from tests.fuzz.cuts import same_for_every_cut

VIEW = make_view(make_member(1), make_member(2), make_member(3, Membership.REMOVED), epoch=5)
FINGERPRINT = VIEW.members[0].fingerprint


def decoded(octets: bytes) -> None:
    """Frames, then perhaps an error; the output equals the input."""

    def run(pieces: list[bytes]) -> object:
        decoder = Decoder()
        found: list[frames.Frame] = []
        fault = ""
        try:
            for piece in pieces:
                for frame in decoder.feed(piece):
                    found.append(frame)  # noqa: PERF402 - those before a fault count
        except FrameError as error:
            fault = str(error)
        again = b"".join(
            frames.HEAD.pack(len(body), kind, flags, 0, tag, epoch) + body
            for kind, flags, tag, epoch, body in found
        )
        assert octets.startswith(again)
        return found, fault

    same_for_every_cut(octets, run)


def link(octets: bytes) -> None:
    """From a connection with the certificate of a member: nothing is raised, and nothing served
    unless its HELLO was good.  Only a view of a higher epoch replaces ours."""

    def run(pieces: list[bytes]) -> object:
        clock = Clock()
        station = Station(2, VIEW, clock)
        end = End()
        taker = Link(station.node, lambda link: None, 0, "127.0.0.2:40000")
        end.link = taker
        taker.connected(end, FINGERPRINT)
        for piece in pieces:
            taker.feed(piece)
        if station.asked:
            assert taker.was_ready
        assert station.view == VIEW or station.view.epoch > VIEW.epoch
        assert all("\n" not in line for line in station.lines)
        asked = [(kind, body) for kind, body, _ in station.asked]
        return asked, station.lines, taker.reason, bytes(end.everything), station.view.digest

    same_for_every_cut(octets, run)


CLUSTER_TARGETS: dict[str, Callable[[bytes], None]] = {"frames": decoded, "link": link}
