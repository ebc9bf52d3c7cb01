"""Damaged bases in Orbax's format: every flipped byte and changed field is refused in one sentence."""

import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tensorstore
from orbax_folders import assert_equal, write

from aligner_jax.data.tokenizer_files import tokenizer_files
from aligner_jax.errors import InputError
from aligner_jax.runtime.sharding import make_mesh, param_shardings
from aligner_jax.weights import orbax, orbax_index
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import base_config, load_base, open_base
from aligner_jax.weights.orbax import write_orbax
from aligner_jax.weights.orbax_block import Block

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (lambda folder: data_file(folder).unlink(), "is damaged: its file params/embed_vd/0/"),
        (lambda folder: data_file(folder).write_bytes(data_file(folder).read_bytes()[:-1]), "bytes, and had"),
        (lambda folder: shutil.rmtree(folder / "params" / "q_ldnh"), "is damaged: its file params/q_ldnh/"),
        (lambda folder: data_file(folder).write_bytes(bytes(size(folder))), "block 0 of leaf embed_vd"),
        (lambda folder: (folder / "params" / "more").touch(), "its file params/more is none of those that were"),
        (lambda folder: index(folder, version=2), "base.json: version is 2, but this release reads version 1"),
        (lambda folder: index(folder, version=True), "base.json: version is True, not a positive integer"),
        (lambda folder: index(folder, format="x"), "base.json: format is 'x', not 'aligner_jax base'"),
        (lambda folder: index(folder, dtype=["float32"]), "base.json: dtype is a list, not one of float32, bfloat16"),
        (lambda folder: index(folder, dtype="bfloat16"), "base.json was changed since it was written"),
        (lambda folder: index(folder, more=1), "base.json: more is not a field of a base's index"),
        (lambda folder: index(folder, config={}), "base.json: config.vocab_size is missing"),
        (lambda folder: index(folder, files=None), "base.json: files is missing"),
        (lambda folder: index(folder, files=[]), "base.json: files is [], not an object"),
        (lambda folder: index(folder, files={"../x": 1}), "files.../x is not the path of a file in this folder"),
        (lambda folder: index(folder, files={"/x": 1}), "files./x is not the path of a file in this folder"),
        (lambda folder: index(folder, files={"x": 1.5}), "files.x is 1.5, not an integer"),
        (lambda folder: index(folder, files={"x": -1}), "files.x is -1, not an integer from 0"),
        (lambda folder: index(folder, blocks=None), "base.json: blocks is missing"),
        (lambda folder: index(folder, blocks={}), "base.json: blocks.embed_vd is missing"),
        (lambda folder: index(folder, blocks={"embed_vd": 64}), "blocks.embed_vd is 64, not a list of integers"),
        (lambda folder: index(folder, blocks={"embed_vd": [64.0]}), "blocks.embed_vd is [64.0], not a list of"),
        (lambda folder: index(folder, blocks={"embed_vd": [60]}), "blocks.embed_vd is [60], which are not 64"),
        (lambda folder: index(folder, blocks={"x": [60]}), "blocks.x is no leaf of this model"),
        (lambda folder: index(folder, digests=1), "base.json: digests is 1, not an object"),
        (lambda folder: (folder / "base.json").write_text("{"), "base.json:1 is not JSON"),
    ],
)  # fmt: skip
def test_damage_is_one_sentence(orbax_base, tmp_path, edit, sentence):
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    edit(folder)
    with pytest.raises(InputError) as error:
        load_base(folder)
    assert sentence in str(error.value)
    assert str(folder) in str(error.value)


def test_values_of_the_config_are_those_that_were_written(orbax_base, tmp_path):
    config = json.loads((orbax_base / "base.json").read_text())["config"]
    for name, value, sentence in (
        ("rope_theta", 20_000.0, "was changed since it was written"),
        ("norm_eps", "x", "config.norm_eps is 'x', not a positive number"),
        ("num_kv_heads", 4, "was changed since it was written"),
        ("d_mlp", 63, "was changed since it was written"),
    ):
        folder = Path(shutil.copytree(orbax_base, tmp_path / f"{name}"))
        index(folder, config=config | {name: value})
        for read in (load_base, base_config):
            with pytest.raises(InputError, match=sentence):
                read(folder)


def test_every_turned_byte_of_a_block_is_refused_or_is_none_of_the_numbers(orbax_base, tmp_path):
    expected = load_base(orbax_base)
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    refused = 0
    for file in sorted((folder / "params" / "q_ldnh").rglob("*")):
        content = file.read_bytes() if file.is_file() else b""
        for at in range(0, len(content), max(1, len(content) // 7)):
            file.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
            try:
                assert_equal(load_base(folder), expected)
            except InputError as error:
                assert str(folder) in str(error) and "leaf q_ldnh" in str(error)  # noqa: PT017, PT018
                refused += 1
            file.write_bytes(content)
    # The array's bytes, and those that lead to them.
    assert refused > 10
    assert_equal(load_base(folder), expected)


def test_a_chunk_of_other_numbers_is_named(orbax_base, hf_base, tmp_path):
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    one, other = (folder / "params" / "gate_ldf" / number for number in "01")
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    # The files' names are random, and a changed name is noticed first.
    content = json.loads((folder / "base.json").read_text())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    content["files"] = {name: size for name, size in files.items() if name != "base.json"}
    content["digests"].pop("index")
    content["digests"]["index"] = orbax_index._digest(content)
    (folder / "base.json").write_text(json.dumps(content))
    for shardings in (None, functools.partial(param_shardings, mesh=make_mesh())):
        with pytest.raises(InputError, match=r"block [01] of leaf gate_ldf is damaged: its chunk \[0, 0, 0\] is not"):
            load_base(folder, shardings=shardings)


def test_a_chunk_never_becomes_more_than_its_bytes(orbax_base, tmp_path):
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    block = folder / "params" / "norm_d" / "0"
    shutil.rmtree(block)
    store = tensorstore.KvStore.open({"driver": "ocdbt", "base": {"driver": "file", "path": f"{block}/"}}).result()
    array = {"shape": [32], "chunks": [32], "dtype": "<f4", "order": "C", "compressor": {"id": "zstd", "level": 1}}
    bomb = pyarrow.compress(bytes(2**29), codec="zstd", asbytes=True)
    assert len(bomb) < 2**18
    store.write("norm_d/.zarray", json.dumps({**array, "filters": None, "zarr_format": 2}).encode()).result()
    store.write("norm_d/0", bomb).result()
    content = json.loads((folder / "base.json").read_text())
    del content["digests"]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "base.json"]
    content["files"] = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    (folder / "base.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"block 0 of leaf norm_d is damaged: its chunk \[0\] cannot be decoded"):
        load_base(folder)
    for name, value in (("chunks", [2**40]), ("shape", [64]), ("dtype", ">f4"), ("order", "F"), ("compressor", None)):
        store.write("norm_d/.zarray", json.dumps({**array, name: value}).encode()).result()
        with pytest.raises(InputError, match="block 0 of leaf norm_d"):
            Block(block, "norm_d", "block 0 of leaf norm_d").read((1,), None)


def test_a_pipe_in_a_blocks_folder_is_refused(orbax_base, tmp_path):
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    manifest = folder / "params" / "norm_d" / "0" / "manifest.ocdbt"
    manifest.unlink()
    os.mkfifo(manifest)
    index(folder, files={}, digests=None)
    with pytest.raises(InputError, match=r"its file params/.* is none of those that were written"):
        load_base(folder)


def test_a_vocabulary_of_other_bytes_is_refused(tiny_model, tmp_path):
    folder = write(tiny_model, tmp_path / "copy", tokenizer=tokenizer_files(tiny_model))
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_bytes(config.read_bytes().replace(b" ", b"\n", 1))
    with pytest.raises(InputError, match=r"its file tokenizer/tokenizer_config\.json is not what was written"):
        load_base(folder)


def test_a_base_of_an_earlier_release_has_no_digests(orbax_base, hf_base, tmp_path):
    folder = Path(shutil.copytree(orbax_base, tmp_path / "copy"))
    content = json.loads((folder / "base.json").read_text())
    del content["digests"]
    (folder / "base.json").write_text(json.dumps(content))
    assert_equal(load_base(folder), load_base(hf_base))
    index(folder, config=content["config"] | {"d_mlp": 63})
    with pytest.raises(InputError, match=r"block 0 of leaf gate_ldf is float32 \[1, 32, 48\], but base.json asks for"):
        load_base(folder)
    index(folder, config=content["config"], dtype="bfloat16")
    with pytest.raises(InputError, match=r"is float32 \[.*\], but base.json asks for bfloat16"):
        load_base(folder)


@pytest.mark.parametrize("value", [np.nan, 3.4e38], ids=str)
def test_numbers_that_are_not_finite_are_neither_written_nor_read(hf_base, tmp_path, value):
    checkpoint = open_base(hf_base)
    parts = open_parts(checkpoint, "float32")

    def spoilt(leaf, indexes):
        found = parts(leaf, indexes)
        if leaf == "norm_d":
            found[0][3] = value
        return found

    if np.isfinite(value):
        write_orbax(tmp_path / "out", checkpoint.config, spoilt, "float32", {})
        assert load_base(tmp_path / "out").params.norm_d[3] == np.float32(value)
        # The value is rounded to infinity in that dtype.
        sentence = "block 0 of leaf norm_d holds numbers that bfloat16 cannot hold; load it in float32"
        with pytest.raises(InputError, match=sentence):
            load_base(tmp_path / "out", "bfloat16")
        return
    with pytest.raises(InputError, match="block 0 of leaf norm_d, as float32, holds numbers that are not finite"):
        write_orbax(tmp_path / "out", checkpoint.config, spoilt, "float32", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(orbax, "check_finite", lambda numbers, what: None)
        write_orbax(tmp_path / "out", checkpoint.config, spoilt, "float32", {})
    with pytest.raises(InputError, match="block 0 of leaf norm_d holds numbers that are not finite"):
        load_base(tmp_path / "out")


def data_file(folder: Path) -> Path:
    return max((folder / "params" / "embed_vd" / "0").rglob("d/*"), key=lambda file: file.stat().st_size)


def size(folder: Path) -> int:
    return data_file(folder).stat().st_size


def index(folder: Path, **fields: object) -> None:
    content = json.loads((folder / "base.json").read_text())
    (folder / "base.json").write_text(json.dumps(content | fields))
