"""The cache of programs compiled for TPUs: a hit equals the compilation; any change or damage compiles again."""

import functools
import importlib.metadata
import json
import zlib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.planning import compiled
from aligner_jax.planning.compiled import Compiled, chip_of, compile_for
from aligner_jax.planning.topology import topology_devices, without_a_cache_of_programs
from aligner_jax.runtime import chips
from aligner_jax.runtime.program_digest import digest_of

pytest.importorskip("libtpu", reason="the TPU compiler exists for Linux on x86-64 only")


@functools.cache
def devices(topology: str) -> list[Any]:
    return topology_devices(topology)


@pytest.fixture
def folder(tmp_path: Path):
    """An empty cache for one test."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path / "tpu"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[jax.stages.Lowered]:
    """Records every program that is given to the compiler."""
    seen, original = [], compiled._compile

    def compile_and_count(lowered: jax.stages.Lowered, mesh: Mesh) -> Any:
        seen.append(lowered)
        return original(lowered, mesh)

    monkeypatch.setattr(compiled, "_compile", compile_and_count)
    return seen


def product(factor: int = 2, *, topology: str = "v5e:2x2", name: str = "times", width: int = 512) -> Compiled:
    """Compiles a small function of rows that are sharded over four devices."""
    mesh = Mesh(np.array(devices(topology)).reshape(2, 2), ("a", "b"))
    rows_bd = jax.ShapeDtypeStruct(
        (8, width), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(("a", "b"), None))
    )

    def function(x_bd):
        with jax.named_scope(name):
            return {"scaled": factor * jnp.tanh(x_bd), "sum": x_bd.sum()}

    return compile_for(chip_of(mesh.devices.flat[0]), jax.jit(function), rows_bd)


def test_the_digest_has_the_name_of_every_operation_in_order():
    def digest(names: str) -> str:
        def function(x):
            for name in names:
                with jax.named_scope(name):
                    x = jnp.tanh(x)
            return x

        where = NamedSharding(Mesh(np.array(devices("v5e:2x2")[:1]), ("a",)), PartitionSpec())
        lowered = jax.jit(function).lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=where))
        return digest_of(lowered, devices("v5e:2x2"))

    assert digest("aba") == digest("aba")
    assert len({digest("aba"), digest("abb"), digest("baa")}) == 3


def test_a_program_is_compiled_once_and_its_record_is_the_compilers(folder: Path, compilations: list):
    first, second = product(), product()
    assert len(compilations) == 1
    assert len(list(folder.iterdir())) == 1
    assert first == second
    with without_a_cache_of_programs():
        program = compilations[0].compile()
    memory = program.memory_analysis()
    assert second.text == program.as_text()
    assert (second.peak_bytes, second.temporary_bytes) == (memory.peak_memory_in_bytes, memory.temp_size_in_bytes)
    assert second.output_shardings == program.output_shardings
    assert second.output_shardings["scaled"].spec == PartitionSpec(("a", "b"), None)
    assert [each.kind for each in second.sent or ()] == ["all-reduce"]
    assert second.fits


@pytest.mark.parametrize(
    "changed",
    [{"factor": 3}, {"topology": "v6e:2x2"}, {"name": "multiplied"}, {"width": 1024}],
    ids=lambda changed: next(iter(changed)),
)
def test_a_changed_program_or_device_is_compiled_again(folder: Path, compilations: list, changed: dict):
    product()
    other = product(**changed)
    assert len(compilations) == 2
    assert other.text is not None
    assert changed.get("name", "times") in other.text


@pytest.mark.parametrize("variable", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_flags_of_the_compiler_count(folder: Path, compilations: list, monkeypatch, variable: str):
    product()
    monkeypatch.setenv(variable, "--a_flag=1")
    product()
    assert len(compilations) == 2


def test_another_compiler_compiles_again(folder: Path, compilations: list, monkeypatch: pytest.MonkeyPatch):
    product()
    for name in ("jaxlib", "libtpu"):
        installed = importlib.metadata.version
        monkeypatch.setattr(
            importlib.metadata, "version", lambda each, n=name, i=installed: "0" if each == n else i(each)
        )
        product()
    assert len(compilations) == 3


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        lambda content: zlib.compress(b"[]"),
        lambda content: zlib.compress(b'["program", {"text": ""}]'),
        lambda content: zlib.compress(json.dumps(["another", {}]).encode()),
    ],
)
def test_a_damaged_entry_is_compiled_and_written_again(folder: Path, compilations: list, damage):
    made = []
    for run in range(3):
        if run == 1:
            (entry,) = folder.iterdir()
            entry.write_bytes(damage(entry.read_bytes()))
        made.append(product())
    assert len({each.text for each in made}) == 1
    assert len(compilations) == 2


def test_where_nothing_can_be_written_it_is_compiled(folder: Path, compilations: list):
    folder.write_text("in the way")
    assert len({product().text for _ in range(2)}) == 1
    assert len(compilations) == 2


@pytest.mark.parametrize("setting", [("jax_enable_compilation_cache", False), ("jax_compilation_cache_dir", None)])
def test_without_jaxs_cache_nothing_is_remembered(folder: Path, compilations: list, setting: tuple[str, Any]):
    before = getattr(jax.config, setting[0])
    jax.config.update(*setting)
    try:
        product()
        product()
    finally:
        jax.config.update(setting[0], before)
    assert len(compilations) == 2
    assert not folder.exists()


def test_a_program_that_is_too_large_is_remembered_with_what_it_would_need(folder: Path, compilations: list):
    device = devices("v5e:2x2")[0]
    where = NamedSharding(Mesh(np.array([device]), ("a",)), PartitionSpec())
    x = jax.ShapeDtypeStruct((5 << 30,), jnp.float32, sharding=where)
    first, second = (compile_for(chip_of(device), jax.jit(jnp.tanh), x) for _ in range(2))
    assert first == second
    assert len(compilations) == 1
    assert not first.fits
    assert first.peak_bytes >= 40 << 30 > chips.CHIPS["TPU v5 lite"].hbm_bytes
