"""Blocks kept in reserve for a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from metad.store.ballast import CRITICAL, Ballast
from tests.support.osio_kit import Faults, KitOsio
from tests.support.store_kit import make_identity

MIB = 1 << 20


class Disk(KitOsio):
    def total_space(self, path: str) -> int:
        return 64 * MIB


@pytest.fixture
def osio() -> Disk:
    return Disk()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "spool" / "ballast"


@pytest.fixture
def ballast(tmp_path: Path, osio: Disk, place: Path) -> Ballast:
    return Ballast(osio, make_identity(tmp_path), 4 * MIB)


def test_it_is_made_where_there_is_room_and_once(ballast: Ballast, place: Path) -> None:
    for _ in range(3):
        ballast.look()
    assert place.stat().st_blocks * 512 >= MIB


def test_it_is_not_made_where_new_mail_needs_the_room(
    ballast: Ballast, osio: Disk, place: Path
) -> None:
    osio.space = 3 * MIB
    ballast.look()
    assert not place.exists()


def test_it_is_given_up_when_almost_nothing_is_free(
    ballast: Ballast, osio: Disk, place: Path
) -> None:
    ballast.look()
    osio.space = CRITICAL
    ballast.look()
    assert place.exists()
    osio.space = CRITICAL - 1
    ballast.look()
    ballast.look()
    assert not place.exists()


def test_a_start_gives_it_up_if_less_than_it_is_free(
    ballast: Ballast, osio: Disk, place: Path
) -> None:
    ballast.look()
    ballast.release_at_start()
    assert place.exists()
    osio.space = MIB - 1
    ballast.release_at_start()
    assert not place.exists()


def test_half_a_ballast_is_none(ballast: Ballast, osio: Disk, place: Path) -> None:
    osio.faults = Faults("allocate", 1, error=errno.ENOSPC)
    ballast.look()
    assert not place.exists()
    ballast.look()
    assert place.exists()
