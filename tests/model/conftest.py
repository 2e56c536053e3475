"""The model tests use the scratch space and the children of the power-cut campaign."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "crash"))
