"""Commands that read the store beside a hub wait for mail that its index does not have yet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metad.cli.mail import mailstore
from metad.store.log.footer import ENTRY_SIZE
from metad.store.log_table import segment_name
from metad.store.unentered_mail import UnenteredMail
from metad.system.shared_memory import SharedArea

WORKER = 3


@pytest.fixture
def area(tmp_path: Path) -> Iterator[SharedArea]:
    """The shared memory of a hub on `tmp_path`."""
    (tmp_path / "run").mkdir()
    name = segment_name(b"tests of entries")
    (tmp_path / "run" / "segment").write_text(name)
    made = SharedArea.create(name)
    yield made
    made.unlink()


def test_the_command_asks_and_waits_until_the_worker_has_entered_its_mail(
    tmp_path: Path, area: SharedArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = UnenteredMail(area, WORKER)
    worker.add(bytes(ENTRY_SIZE))
    asked: list[bool] = []

    def sleep(_: float) -> None:
        asked.append(worker.is_asked())
        worker.settle()

    monkeypatch.setattr("metad.cli.mail.mailstore.time.sleep", sleep)
    mailstore.wait_for_entries(tmp_path)
    assert asked == [True]


def test_it_does_not_wait_without_such_mail(
    tmp_path: Path, area: SharedArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metad.cli.mail.mailstore.time.sleep", lambda _: pytest.fail("it waits"))
    mailstore.wait_for_entries(tmp_path)
    (tmp_path / "run" / "segment").unlink()
    mailstore.wait_for_entries(tmp_path)


def test_it_goes_on_if_the_mail_is_not_entered(
    tmp_path: Path, area: SharedArea, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = UnenteredMail(area, WORKER)
    worker.add(bytes(ENTRY_SIZE))
    monkeypatch.setattr(mailstore, "ENTRY_SECONDS", 0.0)
    mailstore.wait_for_entries(tmp_path)
    assert worker.is_mine(0)
