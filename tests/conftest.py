"""Shared fixtures. Tests run on the CPU with few threads and fixed seeds."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch

torch.set_num_threads(int(os.environ.get("SPEECHSSL_TEST_THREADS", "1")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def corpora_dir() -> Path:
    """The folder of real recordings; tests that need it are skipped where it is absent."""
    folder = os.environ.get("SPEECHSSL_CORPORA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("SPEECHSSL_CORPORA names no folder")
    return Path(folder)
