"""A hub that is alone pays nothing for clusters: none of their code is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """{first}
import sys
import metad.master.entry, metad.master.master, metad.workers.worker, metad.workers.collector
from pathlib import Path
from metad import layers
from metad.config.parse import parse
config = parse({text!r}, None, Path("/srv/m"), {{"HOME": "/"}})
layers.of_worker(config)
print(*sorted(name for name in sys.modules if name.startswith("metad.cluster")))
"""


def imported(text: str, first: str = "") -> list[str]:
    command = [sys.executable, "-c", SCRIPT.format(text=text, first=first)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.slow
def test_a_hub_that_is_alone_imports_nothing_of_the_cluster():
    assert imported("") == []


@pytest.mark.slow
def test_an_import_would_be_found():
    assert "metad.cluster.link" in imported("", "import metad.cluster.link")
