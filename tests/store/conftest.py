"""The store's tests work on a tmpfs where there is one: real files, and no disk to wait for."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

FAST = "/dev/shm"


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="metad-test-", dir=FAST if os.path.isdir(FAST) else None))
    yield made
    shutil.rmtree(made)
