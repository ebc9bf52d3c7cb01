"""The digest of a program: another program, or another version of what compiles it, has another."""

import jax
import jax.numpy as jnp
import pytest

from aligner_jax.runtime import program_digest
from aligner_jax.runtime.program_digest import digest_of


def digest(number: float) -> str:
    return digest_of(jax.jit(lambda x: x + number).lower(jnp.zeros(3)), jax.devices()[:1])


@pytest.mark.parametrize("package", ["jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "jax-cuda13-pjrt"])
def test_a_new_version_of_a_compiler_has_another_digest(monkeypatch: pytest.MonkeyPatch, package: str):
    before = digest(1)
    assert digest(1) == before
    assert digest(2) != before
    version = program_digest._version
    monkeypatch.setattr(program_digest, "_version", lambda name: "99" if name == package else version(name))
    assert digest(1) != before
