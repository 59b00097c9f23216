"""The files of a sweep that its makers and its readers both know, and when one of its runs is finished."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

PLAN_FILE = "sweep.json"
"""In a sweep's folder."""
MEASURED_FILE = "measured.json"
"""In a run's folder: what was measured of it, written last."""
FAILED_FILE = "failed.json"
"""In a run's folder: why its last attempt failed."""


def is_measured(run: Path, *, key: str) -> bool:
    """Whether the run in this folder was measured as the plan with this key has it, and its weights are there."""
    with suppress(OSError, ValueError, AttributeError):
        measured = json.loads((run / MEASURED_FILE).read_text(encoding="utf-8"))
        return bool(measured.get("key") == key) and (run / "best.pt").is_file()
    return False
