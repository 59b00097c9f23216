from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from mnet_det.engine.claim import TakenError, claim, is_taken
from mnet_det.errors import MnetDetError

HOLD = """
import sys, time
from pathlib import Path
from mnet_det.engine.claim import claim
with claim(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_folder_is_one_process_own_until_it_lets_go(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_taken(folder)
    with claim(folder), pytest.raises(TakenError), claim(folder):
        pass
    assert not is_taken(folder)


def test_a_process_that_is_killed_keeps_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline().strip() == b"mine"
        assert is_taken(folder)
        holder.kill()
        holder.wait()
    deadline = time.monotonic() + 10
    while is_taken(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_taken(folder)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MnetDetError, match="cannot be written"), claim(tmp_path / "file" / "run"):
        pass
