"""The store's tests work on a tmpfs where there is one: real files, and no disk to wait for.
The index is tried and read in the process itself, unless a test asks for `index_child`."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.in_process import index_in_process

FAST = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="metad-test-", dir=FAST if os.path.isdir(FAST) else None))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def index_child() -> None:
    """For tests of an index that may end the process that reads it."""


@pytest.fixture(autouse=True)
def index_reader(request: pytest.FixtureRequest) -> Iterator[None]:
    if "index_child" in request.fixturenames:
        yield
        return
    with index_in_process():
        yield
