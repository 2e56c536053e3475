"""How much a run does, and that the results of its campaigns are added up and shown at the end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import sizes

ROOT = Path(__file__).parents[2]
CAMPAIGN = """
import pytest
from tests.support import sizes

@pytest.mark.parametrize("part", range(4))
def test_part(part):
    sizes.reached("states", sizes.sized(10, 1000))
    assert part != 3

def test_figure():
    sizes.noted("slowest", "0.5 s")
"""

LONG = """
import pytest

@pytest.mark.long
@pytest.mark.parametrize("number", range(40))
def test_long(number):
    pass

def test_short():
    pass
"""


@pytest.mark.parametrize(("scale", "size"), [(0, 10), (0.001, 10), (1, 1000), (20, 20_000)])
def test_a_scale_is_so_many_times_ci_and_never_less_than_a_developers(monkeypatch, scale, size):
    monkeypatch.setattr(sizes, "SCALE", scale)
    assert sizes.sized(10, 1000) == size


def test_a_developer_tries_a_share_and_ci_all(monkeypatch):
    items = list(range(16))
    monkeypatch.setattr(sizes, "SCALE", 0)
    tried = set()
    for seed in range(20):
        monkeypatch.setattr(sizes, "SEED", seed)
        share = sizes.some(items)
        assert len(share) == 6
        assert share == sorted(share) == sizes.some(items)
        tried.update(share)
    assert tried == set(items)
    monkeypatch.setattr(sizes, "SCALE", 1)
    assert sizes.some(items) == items


@pytest.mark.parametrize("processes", ["0", "2"])
def test_sums_and_figures_of_all_processes_are_shown(tmp_path, processes):
    (tmp_path / "test_campaign.py").write_text(CAMPAIGN)
    counts = tmp_path / "counts"
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.conftest"]
    done = subprocess.run(
        [*command, "-n", processes, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "METAD_TEST_COUNTS": str(counts),
            "METAD_TEST_SCALE": "2",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stdout
    assert "\nstates: 8,000\nslowest: 0.5 s\n" in done.stdout
    first, name, *failure = counts.read_text().splitlines()
    assert (first, name) == ("4 1", "test_campaign.py::test_part[3]")
    assert "E       assert 3 != 3" in failure
    assert failure[-1] == "test_campaign.py:8: AssertionError"


def collected(place, *arguments, seed=1, scale=""):
    command = [sys.executable, "-m", "pytest", "-p", "xdist", "-p", "tests.conftest", "--co", "-q"]
    done = subprocess.run(
        [*command, "-o", "markers=long", *arguments],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "METAD_TEST_SEED": str(seed),
            "METAD_TEST_SCALE": scale,
        },
        cwd=place,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_of_the_long_tests_a_developers_run_has_a_share_by_the_seed_and_ci_has_all(tmp_path):
    (tmp_path / "test_some.py").write_text(LONG)
    first, other = collected(tmp_path), collected(tmp_path, seed=2)
    assert first[-1] == other[-1] == "test_some.py::test_short"
    assert 2 <= len(first) <= 25
    assert first != other
    assert first == collected(tmp_path)
    assert len(collected(tmp_path, scale="0.1")) == 41


@pytest.mark.parametrize("choice", [["test_some.py"], ["-k", "test_"]])
def test_a_developer_who_names_a_file_or_words_gets_every_long_test_there(tmp_path, choice):
    (tmp_path / "test_some.py").write_text(LONG)
    assert len(collected(tmp_path, *choice)) == 41
