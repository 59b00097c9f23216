"""Fixtures for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, weights and clips beside the checkout; tests that need it are marked `shared`."""
    folder = Path(os.environ.get("MNET_DET_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no {folder}: set MNET_DET_SHARED to the folder of real images, weights and clips")
    return folder
