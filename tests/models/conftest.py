"""What the tests of models share."""

from __future__ import annotations

from pathlib import Path

import jax
import pytest
from tiny_bert import write


@pytest.fixture(autouse=True)
def full_precision():
    """Some accelerators multiply float32 matrices with fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The tiny BERT as a directory."""
    return write(tmp_path / "tiny")
