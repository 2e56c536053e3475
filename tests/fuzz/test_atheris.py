"""The campaign itself, guided by coverage, briefly for each target of reliability.md's row 13.

Skipped if atheris is not installed (`sh tools/test --full` installs it if there is a wheel).
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutations import CORPUS
from tests.support.sizes import reached, sized

SECONDS = sized(1, 10)


@pytest.mark.skipif(not importlib.util.find_spec("atheris"), reason="atheris is not installed")
@pytest.mark.parametrize("target", ["smtp", "pop3", "proxy", "record", "settings", "passwd"])
def test_what_coverage_leads_to_is_taken(target: str, tmp_path: Path) -> None:
    campaign = Path(__file__).with_name("campaign.py")
    run = subprocess.run(
        [sys.executable, campaign, target, str(SECONDS)],
        env={**os.environ, "METAD_FUZZ_FOUND": str(tmp_path)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    done = re.search(r"Done (\d+) runs", run.stderr)
    assert done, run.stderr[-3000:]
    reached(f"row 13, guided by coverage: {target}", int(done[1]))
    assert int(done[1]) > len(list((CORPUS / target).iterdir()))
