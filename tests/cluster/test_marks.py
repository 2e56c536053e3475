"""Marks: an old copy of a disk is noticed, and never a good disk, whatever kills its node."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from metad.cluster import marks
from metad.cluster.heard_marks import HeardMarks, Member
from metad.cluster.marks import MOST_RUNS, Heard, Told
from metad.cluster.old_disks import Marks, OldDisks
from metad.cluster.own_marks import OwnMarks
from metad.errors import ClusterError
from metad.system.osio import Osio
from tests.support.osio_kit import SEED, Faults, KitOsio
from tests.support.power_kit import MODES, Disk, lay_out
from tests.support.sizes import scaled

_tokens = iter(range(1, 1 << 62))


class Hub:
    """A node's directories, and the process that has them."""

    def __init__(self, place: Path, osio: Osio | None = None) -> None:
        self.place = place
        self.cluster, self.logs = place / "cluster", place / "logs"
        for each in (place, self.cluster, self.logs):
            each.mkdir(exist_ok=True)
        self.osio = osio or Osio()
        self.lines: list[str] = []

    def start(self) -> str:
        """A run begins; why the node takes no part."""
        self.cells = memoryview(bytearray(16)).cast("Q")
        self.own = self.process()
        self.heard = HeardMarks(self.osio, str(self.cluster / "heard"), self.lines.append)
        number = int(self.place.name)
        refusal = self.own.begin(next(_tokens).to_bytes(8, "big"))
        self.disks = OldDisks(number, self.own, self.heard, self.lines.append)
        return refusal

    def process(self) -> OwnMarks:
        """A process of the hub."""
        return OwnMarks(self.osio, self.cluster, str(self.logs), self.cells, self.lines.append)

    def copy(self, to: Path) -> None:
        shutil.copytree(self.place, to, dirs_exist_ok=True)


def meet(one: Hub, other: Hub) -> tuple[str | None, str | None]:
    """What each finds about the other at a HELLO."""
    numbers = [int(each.place.name) for each in (one, other)]
    sent = one.disks.tell(numbers[1]), other.disks.tell(numbers[0])
    return one.disks.fault(numbers[1], sent[1]), other.disks.fault(numbers[0], sent[0])


@pytest.fixture
def two(tmp_path: Path) -> tuple[Hub, Hub]:
    nodes = Hub(tmp_path / "1"), Hub(tmp_path / "2")
    for node in nodes:
        assert node.start() == ""
    assert meet(*nodes) == (None, None)
    return nodes


def put_back(node: Hub, copy: Path) -> None:
    shutil.rmtree(node.place)
    shutil.copytree(copy, node.place)


def test_nodes_that_start_again_and_again_are_the_same(two: tuple[Hub, Hub]) -> None:
    a, b = two
    for number in range(2 * MOST_RUNS):
        node = two[number % 2]
        node.own.beat()
        if number % 3:
            assert node.start() == ""
        assert meet(a, b) == (None, None)


def test_a_copy_of_before_the_last_start_is_refused_by_both(
    two: tuple[Hub, Hub], tmp_path: Path
) -> None:
    a, b = two
    b.copy(tmp_path / "copy")
    assert b.start() == ""
    assert meet(a, b) == (None, None)
    put_back(b, tmp_path / "copy")
    assert b.start() == ""  # it does not know
    there, here = meet(a, b)
    assert there == "node 2 has an old copy of its disk, or runs twice; empty it and join again"
    assert here == there
    assert b.lines == [
        "warning: this node no longer takes part: node 1 knows a later state of its disk, or it "
        "runs twice; empty it and join again"
    ]
    assert b.own.refusal
    assert "takes no part" in str(meet(a, b)[1])
    assert b.start() == b.own.refusal != ""  # nor after a restart, though it meets no other


@pytest.mark.parametrize("starts", [1, 2, 5, MOST_RUNS])
def test_an_old_copy_does_not_catch_up(two: tuple[Hub, Hub], tmp_path: Path, starts: int) -> None:
    a, b = two
    b.copy(tmp_path / "copy")
    for _ in range(3):
        b.start()
        b.own.beat()
    assert meet(a, b) == (None, None)
    put_back(b, tmp_path / "copy")
    for _ in range(starts):
        assert b.start() == ""
        for _ in range(4):
            b.own.beat()
    assert None not in meet(a, b)


def test_a_copy_taken_while_the_node_ran_is_refused(two: tuple[Hub, Hub], tmp_path: Path) -> None:
    a, b = two
    b.copy(tmp_path / "copy")
    b.own.beat()
    a.heard.keep({2: Member(b.own.told().last)}, [1, 2])
    put_back(b, tmp_path / "copy")
    assert b.start() == ""
    assert None not in meet(a, b)


def test_a_machine_that_goes_on_from_a_snapshot_of_its_memory_is_refused(
    two: tuple[Hub, Hub], tmp_path: Path
) -> None:
    a, b = two
    b.copy(tmp_path / "copy")
    beat = b.cells[0]
    for _ in range(marks.BEATS_LATE + 1):
        b.own.beat()
    a.heard.keep({2: Member(b.own.told().last)}, [1, 2])
    put_back(b, tmp_path / "copy")
    b.cells[0] = beat
    assert None not in meet(a, b)


def test_a_hello_that_a_beat_overtakes_is_no_old_disk(two: tuple[Hub, Hub]) -> None:
    a, b = two
    sent = b.disks.tell(1)
    for _ in range(marks.BEATS_LATE):
        b.own.beat()
    a.heard.keep({2: Member(b.own.told().last)}, [1, 2])
    assert a.disks.fault(2, sent) is None


def test_of_two_nodes_with_one_disk_the_first_that_is_heard_is_the_member(
    two: tuple[Hub, Hub], tmp_path: Path
) -> None:
    a, b = two
    twin_place = tmp_path / "elsewhere" / "2"
    b.copy(twin_place)
    twin = Hub(twin_place)
    assert b.start() == twin.start() == ""
    assert meet(a, b) == (None, None)
    assert None not in meet(a, twin)
    assert twin.own.refusal
    assert meet(a, b) == (None, None)
    assert not b.own.refusal


def test_a_process_left_over_from_the_run_before_does_no_harm(two: tuple[Hub, Hub]) -> None:
    a, b = two
    left_over = b.disks, b.own
    b.start()
    assert meet(a, b) == (None, None)
    mark = a.heard.mark(2)
    assert mark is not None
    assert left_over[0].fault(1, Marks(heard=mark.pack())) is None
    assert not left_over[1].refusal
    assert not b.own.refusal
    left_over[1].beat()
    assert b.start() == ""
    assert meet(a, b) == (None, None)


@pytest.mark.parametrize("part", ["logs", "cluster"])
def test_a_part_of_the_disk_that_is_older_than_the_rest(
    two: tuple[Hub, Hub], tmp_path: Path, part: str
) -> None:
    _, b = two
    b.copy(tmp_path / "copy")
    b.own.beat()
    b.own.beat()
    shutil.rmtree(b.place / part)
    shutil.copytree(tmp_path / "copy" / part, b.place / part)
    assert b.start().endswith("; empty it and join again")
    assert "older" in b.own.refusal


def test_logs_without_marks_come_from_elsewhere(two: tuple[Hub, Hub]) -> None:
    _, b = two
    (b.logs / "told").unlink()
    assert "logs are older" in b.start()


def test_the_operator_may_let_an_old_disk_go_on(two: tuple[Hub, Hub]) -> None:
    _, b = two
    b.own.refuse("a reason")
    b.own.look()
    assert b.own.refusal == "a reason"
    (b.cluster / "refused").unlink()
    b.own.look()
    assert b.own.refusal == ""
    assert b.start() == ""


def test_a_second_process_of_a_hub_joins_its_run(two: tuple[Hub, Hub]) -> None:
    _, b = two
    second = b.process()
    assert second.begin(bytes(8)) == ""
    assert second.told() == b.own.told()
    b.own.beat()
    assert second.told() == b.own.told()


def test_commands_and_older_releases_are_not_judged(two: tuple[Hub, Hub]) -> None:
    a, _ = two
    assert a.disks.fault(2, Marks()) is None
    assert a.disks.fault(9, Marks()) is None


def test_members_that_are_gone_are_forgotten_and_marks_never_go_back(two: tuple[Hub, Hub]) -> None:
    a, b = two
    old = b.own.told().last
    b.own.beat()
    new = b.own.told().last
    a.heard.keep({2: Member(new, {(2, 7): 5}), 3: Member(new)}, [1, 2, 3])
    a.heard.keep({2: Member(old, {(2, 7): 6}), 3: Member(new)}, [1, 2, 3])
    assert a.heard.all()[2] == Member(new, {(2, 7): 5})
    a.heard.keep({2: Member(new, {(2, 7): 6})}, [1, 2])
    assert a.heard.all() == {2: Member(new, {(2, 7): 6})}


# --- What is damaged, and what fails --------------------------------------------------------------


@pytest.mark.parametrize("name", ["cluster/told", "logs/told", "cluster/heard"])
def test_a_damaged_file_is_no_old_disk(two: tuple[Hub, Hub], name: str) -> None:
    a, b = two
    a.own.beat()
    b.heard.keep({1: Member(a.own.told().last)}, [1, 2])
    (a.place / name).write_bytes(b"\xc1")
    assert a.start() == ""
    assert meet(a, b) == (None, None)
    assert f"{name}: damaged" in a.lines[0]
    assert a.start() == ""
    assert meet(a, b) == (None, None)
    assert len(a.lines) <= 2


def test_a_file_that_cannot_be_read_is_no_old_disk(two: tuple[Hub, Hub], tmp_path: Path) -> None:
    a, b = two
    a.osio = KitOsio(str(tmp_path), faults=Faults("pread", 1, only="cluster/told"))
    assert a.start() == ""
    assert meet(a, b) == (None, None)
    assert "Input/output error" in a.lines[0]


def test_a_file_that_is_gone_is_made_from_the_other(two: tuple[Hub, Hub]) -> None:
    a, b = two
    (a.cluster / "told").unlink()
    assert a.start() == ""
    assert meet(a, b) == (None, None)


def test_both_files_damaged_is_an_error(two: tuple[Hub, Hub]) -> None:
    a, _ = two
    for name in ("cluster/told", "logs/told"):
        (a.place / name).write_bytes(b"\xc1")
    with pytest.raises(ClusterError, match="logs/told: damaged"):
        a.start()


def test_what_is_not_a_mark_is_refused() -> None:
    dice = random.Random(SEED)
    good = Told(3, 9, (marks.Run(bytes(8), 4),)).pack()
    for _ in range(500):
        size = dice.choice([0, 1, len(good) - 1, len(good) + 1, 16, 16 + 16 * (MOST_RUNS + 1)])
        with pytest.raises(ClusterError):
            marks.unpack_told(dice.randbytes(size))
        with pytest.raises(ClusterError):
            marks.unpack_heard(dice.randbytes(size))
    assert marks.unpack_told(good).pack() == good
    assert marks.unpack_heard(Heard(bytes(8), 1, 2).pack()) == Heard(bytes(8), 1, 2)


@pytest.mark.parametrize("kind", ["open", "write", "sync", "rename", "dir-sync"])
def test_a_beat_that_fails_is_not_told_and_comes_again(tmp_path: Path, kind: str) -> None:
    faults = Faults()
    b = Hub(tmp_path / "2", KitOsio(str(tmp_path), faults=faults))
    b.start()
    before = b.own.told()
    for ordinal in range(1, 5):
        faults.kind, faults.ordinal, faults.hits = kind, ordinal, 0
        faults.counts.clear()
        try:
            b.own.beat()
        except (OSError, ClusterError):
            assert b.own.told() == before
        before = b.own.told()
    faults.kind = ""
    b.own.beat()
    assert b.own.told().beat == before.beat + 1
    assert b.start() == ""


# --- Killed anywhere ------------------------------------------------------------------------------


def recorded(place: Path, dice: random.Random) -> tuple[KitOsio, list[tuple[int, Heard]]]:
    """A node's life: what it wrote, and after how many changes it told what."""
    osio = KitOsio(str(place), record=True)
    hub = Hub(place, osio)
    told: list[tuple[int, Heard]] = []
    for _ in range(4):
        assert hub.start() == ""
        told.append((len(osio.ops), hub.own.told().last))
        for _ in range(dice.randint(0, 3)):
            hub.own.beat()
            told.append((len(osio.ops), hub.own.told().last))
    return osio, told


def after_a_cut(osio: KitOsio, hub: Hub, changes: int, dice: random.Random) -> None:
    """Lay out what the disk may have when the power fails after so many changes."""
    mode = dice.choice(MODES)
    for directory in (hub.cluster, hub.logs):
        disk = Disk()
        for op in osio.ops[:changes]:
            if op.path.startswith(f"{directory}/") or op.path == str(directory):
                disk.apply(op)
        lay_out(disk.state(dice, mode), str(directory), str(directory))


@pytest.mark.long
@pytest.mark.slow
def test_a_power_cut_at_any_change_is_no_old_disk(tmp_path: Path) -> None:
    dice = random.Random(f"{SEED} marks")
    cuts = 0
    for life in range(scaled(4)):
        hub = Hub(tmp_path / str(life))
        osio, told = recorded(hub.place, dice)
        for changes in range(len(osio.ops) + 1):
            after_a_cut(osio, hub, changes, dice)
            assert hub.start() == "", f"after {changes} changes"
            heard = [mark for at, mark in told if at <= changes]
            for mark in heard:
                assert not marks.is_behind(hub.own.told(), mark), f"after {changes} changes"
            cuts += bool(heard)
    assert cuts > 100


@pytest.mark.slow
def test_a_kill_at_any_call_is_no_old_disk(tmp_path: Path) -> None:
    """The page cache stays: what was renamed is there."""
    kills = 0
    for kind in ("open", "write", "sync", "rename", "dir-sync"):
        for ordinal in range(1, 30):
            faults = Faults(kind, ordinal, dead=True)
            hub = Hub(tmp_path / f"{len(kind)}{ordinal:03}", KitOsio(str(tmp_path), faults=faults))
            last = live_until_killed(hub)
            hub.osio = Osio()
            assert hub.start() == ""
            assert last is None or not marks.is_behind(hub.own.told(), last)
            kills += bool(faults.hits)
    assert kills > 40


def live_until_killed(hub: Hub) -> Heard | None:
    """What it told last."""
    last: Heard | None = None
    try:
        for _ in range(3):
            assert hub.start() == ""
            last = hub.own.told().last
            hub.own.beat()
            last = hub.own.told().last
    except (OSError, ClusterError):
        pass
    return last
