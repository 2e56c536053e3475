"""The directory for files that perf/ builds or downloads: .perf/ in the checkout, or
METAD_PERF_STATE."""

from __future__ import annotations

import os
from pathlib import Path

STATE = Path(os.environ.get("METAD_PERF_STATE", Path(__file__).resolve().parents[1] / ".perf"))
