"""For the end-to-end tests: one hub for all tests that leave it unchanged, a mailbox for each
test."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator

import pytest

from tests.support.clients import MANY
from tests.support.hub import Hub

_BOXES = [f"box{number:03}" for number in range(200)]  # even for a process that runs all tests


@pytest.fixture(scope="session")
def shared_hub() -> Iterator[Hub]:
    with Hub([*_BOXES, *MANY]) as hub:
        yield hub


@pytest.fixture
def hub(shared_hub: Hub) -> Hub:
    """A running hub.  A test that stops it must start it again."""
    return shared_hub


@pytest.fixture(scope="session")
def boxes() -> Iterator[str]:
    return iter(_BOXES)


@pytest.fixture
def mailbox(boxes: Iterator[str]) -> str:
    """The name of an empty mailbox of the shared hub, for this test only."""
    return next(boxes)


@pytest.fixture
def dice() -> random.Random:
    return random.Random(int(os.environ.get("METAD_TEST_SEED", "1999")))


@pytest.fixture
def program():
    """The path of a program; without it, the test is skipped with a reason."""

    def find(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not here (sh tools/test --full brings it)")
        return path

    return find
