"""What all tests share: a cache of their own, no network, no_grad, and the released code's reference cases."""

import os
import tempfile
from pathlib import Path

import pytest
import torch


# Before anything imports transformers or datasets: both read these once.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="dnabert2-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the released code's larger cases: `DNABERT2_REFERENCE`. Absent, a skip; in CI, a failure."""
    folder = os.environ.get("DNABERT2_REFERENCE")
    if folder and Path(folder).is_dir():
        return Path(folder)
    message = f"the released code's reference cases are not here: DNABERT2_REFERENCE is {folder!r}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
