"""Writes bases in Orbax's format for tests, and compares them."""

from pathlib import Path

import jax
import numpy as np
import pytest

from aligner_jax.weights import orbax
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import open_base
from aligner_jax.weights.orbax import write_orbax


def write(base: Path, folder: Path, dtype: str = "float32", tokenizer: dict[str, bytes] | None = None) -> Path:
    checkpoint = open_base(base)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax, "_BLOCK_BYTES", 1)
        write_orbax(folder, checkpoint.config, open_parts(checkpoint, dtype), dtype, tokenizer or {})
    return folder


def assert_equal(left, right) -> None:
    assert left.config == right.config
    for (path, a), b in zip(jax.tree.leaves_with_path(left), jax.tree.leaves(right), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
