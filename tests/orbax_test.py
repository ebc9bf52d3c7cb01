"""Bases in Orbax's form: bit-equal to what they were written from, whole or absent, damage in one sentence."""

import concurrent.futures
import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import jax
import numpy as np
import pyarrow
import pytest
import tensorstore
from model_folders import CONFIG, draw, meta_params, meta_parts, write_hf, write_meta

from aligner_jax.data.tokenizer import load_tokenizer, tokenizer_files
from aligner_jax.errors import InputError
from aligner_jax.runtime.sharding import make_mesh, param_shardings
from aligner_jax.weights import orbax, orbax_index
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import base_config, load_base, open_base
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.orbax import write_orbax
from aligner_jax.weights.orbax_block import Block

ROOT = Path(__file__).parents[1]

LARGE = dataclasses.replace(
    CONFIG, vocab_size=4096, d_model=512, d_mlp=512, num_layers=32, num_heads=8, num_kv_heads=8, head_dim=64
)
"""251 MB in float32, of which a leaf of all layers is 34 MB and a matrix at most 8 MB."""

MEASURE = """
import sys
from absl import flags
from aligner_jax import convert

def megabytes(name):
    line = next(line for line in open("/proc/self/status") if line.startswith(name))
    return int(line.split()[1]) * 1024 / 1e6

small, large, out = sys.argv[1:]
flags.FLAGS(["convert", f"--base={small}", f"--out={out}/small"])
convert.main()
before = megabytes("VmRSS")
flags.FLAGS(["convert", f"--base={large}", f"--out={out}/large"])
convert.main()
print(megabytes("VmHWM") - before)
"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that even a tiny model's leaves have several blocks."""
    monkeypatch.setattr(orbax, "_BLOCK_BYTES", 1)


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf(tmp_path_factory.mktemp("hf") / "model", CONFIG, draw(), files=2)


@pytest.fixture(scope="module")
def written(hf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in float32; not to be changed."""
    return write(hf, tmp_path_factory.mktemp("orbax") / "model")


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_is_what_was_written(written, hf, dtype):
    base = load_base(written, dtype)
    assert_equal(base, load_base(hf, dtype))
    assert base.tokenizer is None
    assert base.fingerprint == load_base(hf).fingerprint


def test_leaves_have_blocks_of_layers_no_larger_than_the_largest_matrix(written):
    blocks = json.loads((written / "base.json").read_text())["blocks"]
    # The largest matrix is the embedding's, of 64 × 32.
    assert blocks["embed_vd"] == [64]
    assert blocks["gate_ldf"] == [1, 1, 1]
    assert blocks["k_ldkh"] == [3]
    assert sorted(path.name for path in (written / "params" / "gate_ldf").iterdir()) == ["0", "1", "2"]


def test_a_checkpoint_in_bfloat16(hf, tmp_path):
    half = write(hf, tmp_path / "half", "bfloat16")
    assert_equal(load_base(half, "bfloat16"), load_base(hf, "bfloat16"))
    assert load_base(half).params.norm_d.dtype == np.float32


def test_parts_on_devices_and_what_finish_makes_of_them(written, hf):
    names = []

    def finish(name: str, leaf: jax.Array) -> jax.Array:
        names.append(name)
        return -leaf

    shardings = functools.partial(param_shardings, mesh=make_mesh())
    base, plain = load_base(written, shardings=shardings, finish=finish), load_base(hf)
    assert names[0] in ("gate_ldf", "up_ldf", "down_lfd")
    assert len(names) == len(jax.tree.leaves(plain))
    for leaf, sharding, expected in zip(
        jax.tree.leaves(base), jax.tree.leaves(shardings(CONFIG)), jax.tree.leaves(plain), strict=True
    ):
        assert leaf.sharding == sharding
        np.testing.assert_array_equal(leaf, -expected)


def test_a_scaled_rope_and_metas_files(tmp_path):
    params = {**meta_params(CONFIG), "use_scaled_rope": True}
    meta = write_meta(tmp_path / "meta", params, meta_parts(CONFIG, draw(), 2))
    assert_equal(load_base(write(meta, tmp_path / "orbax")), load_base(meta))


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
def test_damage_is_one_sentence(written, tmp_path, edit, sentence):
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    edit(folder)
    with pytest.raises(InputError) as error:
        load_base(folder)
    assert sentence in str(error.value)
    assert str(folder) in str(error.value)


def test_values_of_the_config_are_those_that_were_written(written, tmp_path):
    config = json.loads((written / "base.json").read_text())["config"]
    for name, value, sentence in (
        ("rope_theta", 20_000.0, "was changed since it was written"),
        ("norm_eps", "x", "config.norm_eps is 'x', not a positive number"),
        ("num_kv_heads", 4, "was changed since it was written"),
        ("d_mlp", 63, "was changed since it was written"),
    ):
        folder = Path(shutil.copytree(written, tmp_path / f"{name}"))
        index(folder, config=config | {name: value})
        for read in (load_base, base_config):
            with pytest.raises(InputError, match=sentence):
                read(folder)


def test_every_turned_byte_of_a_block_is_refused_or_is_none_of_the_numbers(written, tmp_path):
    expected = load_base(written)
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
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


def test_a_chunk_of_other_numbers_is_named(written, hf, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    one, other = (folder / "params" / "gate_ldf" / number for number in "01")
    one.rename(tmp_path / "one")
    other.rename(one)
    (tmp_path / "one").rename(other)
    # The files' names are random, and are noticed first.
    content = json.loads((folder / "base.json").read_text())
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    content["files"] = {name: size for name, size in files.items() if name != "base.json"}
    content["digests"].pop("index")
    content["digests"]["index"] = orbax_index._digest(content)
    (folder / "base.json").write_text(json.dumps(content))
    for shardings in (None, functools.partial(param_shardings, mesh=make_mesh())):
        with pytest.raises(InputError, match=r"block [01] of leaf gate_ldf is damaged: its chunk \[0, 0, 0\] is not"):
            load_base(folder, shardings=shardings)


def test_a_chunk_never_becomes_more_than_its_bytes(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
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


def test_a_pipe_in_a_blocks_folder_is_refused(written, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
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


def test_a_base_of_an_earlier_release_has_no_digests(written, hf, tmp_path):
    folder = Path(shutil.copytree(written, tmp_path / "copy"))
    content = json.loads((folder / "base.json").read_text())
    del content["digests"]
    (folder / "base.json").write_text(json.dumps(content))
    assert_equal(load_base(folder), load_base(hf))
    index(folder, config=content["config"] | {"d_mlp": 63})
    with pytest.raises(InputError, match=r"block 0 of leaf gate_ldf is float32 \[1, 32, 48\], but base.json asks for"):
        load_base(folder)
    index(folder, config=content["config"], dtype="bfloat16")
    with pytest.raises(InputError, match=r"is float32 \[.*\], but base.json asks for bfloat16"):
        load_base(folder)


@pytest.mark.parametrize("value", [np.nan, 3.4e38], ids=str)
def test_numbers_that_are_not_finite_are_neither_written_nor_read(hf, tmp_path, value):
    checkpoint = open_base(hf)
    parts = open_parts(checkpoint, "float32")

    def spoilt(leaf, indexes):
        found = parts(leaf, indexes)
        if leaf == "norm_d":
            found[0][3] = value
        return found

    if np.isfinite(value):
        write_orbax(tmp_path / "out", checkpoint.config, spoilt, "float32", {})
        assert load_base(tmp_path / "out").params.norm_d[3] == np.float32(value)
        # It is rounded to an infinity there.
        with pytest.raises(InputError, match="block 0 of leaf norm_d holds numbers that are not finite"):
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


def test_a_base_is_whole_or_absent(hf, tmp_path):
    checkpoint = open_base(hf)
    parts = open_parts(checkpoint, "float32")

    def failing(leaf, indexes):
        if leaf == "norm_d":
            raise InputError("the file ends here")
        return parts(leaf, indexes)

    with pytest.raises(InputError, match="the file ends here"):
        write_orbax(tmp_path / "out", checkpoint.config, failing, "float32", {})
    assert os.listdir(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(InputError, match="out is a folder with other things in it"):
        write_orbax(tmp_path / "out", checkpoint.config, parts, "float32", {})
    assert os.listdir(tmp_path / "out") == ["mine"]


def test_a_base_of_orbax_is_not_converted_again(written):
    with pytest.raises(InputError, match="is a base in Orbax's form already"):
        open_base(written)


def test_any_part_of_a_leaf_is_read_each_chunk_once(hf, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "_CHUNK_BYTES", 256)
    checkpoint = open_base(hf)
    parts = open_parts(checkpoint, "float32")
    write_orbax(tmp_path / "out", checkpoint.config, parts, "float32", {})
    assert_equal(load_base(tmp_path / "out"), load_base(hf))
    read, plain = [], orbax.Block.read
    monkeypatch.setattr(orbax.Block, "read", lambda block, at, crc: read.append((block, at)) or plain(block, at, crc))
    spec, rng = leaf_specs(CONFIG)["gate_ldf"], np.random.default_rng(0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leaf = orbax._open(tmp_path / "out", "gate_ldf", spec, [1, 1, 1], None, np.dtype(np.float32), pool)
        assert leaf[0][1].num_chunks > 20
        (whole,) = parts("gate_ldf", [[slice(None)] * 3])
        for _ in range(20):
            # Layers of several blocks, and parts that share chunks.
            indexes = [[slice(*sorted(rng.choice(n + 1, 2, replace=False))) for n in spec.shape] for _ in range(3)]
            read.clear()
            found = orbax._parts(leaf, spec.shape, np.dtype(np.float32), pool, indexes)
            for part, index in zip(found, indexes, strict=True):
                np.testing.assert_array_equal(part, whole[tuple(index)])
            assert len(set(read)) == len(read)


def test_a_vocabulary_comes_along(tiny_model, tmp_path):
    base = load_base(tiny_model)
    copy = load_base(write(tiny_model, tmp_path / "copy", tokenizer=tokenizer_files(tiny_model)))
    assert_same_tokenizer(copy.tokenizer, base.tokenizer)
    assert copy.tokenizer.chat_template is not None


def test_the_vocabulary_of_a_gguf_comes_along(tmp_path):
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", "\u2581a", "a", "b"])
    writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0])
    writer.add_token_types([2, 3, 3, 1, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_tensor("x", np.ones((999, 7), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name, content in tokenizer_files(path).items():
        (tmp_path / "copy").mkdir()
        (tmp_path / "copy" / name).write_bytes(content)
        assert len(content) < 2000
    assert_same_tokenizer(load_tokenizer(tmp_path / "copy"), load_tokenizer(path))


def assert_same_tokenizer(left, right) -> None:
    names = ("vocab_size", "bos_id", "eos_id", "stop_ids", "pad_id", "add_bos", "chat_template")
    assert [getattr(left, name) for name in names] == [getattr(right, name) for name in names]
    assert left.encode("a ab") == right.encode("a ab")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_the_host_has_room_for_a_few_matrices_only(hf, tmp_path):
    large = write_hf(tmp_path / "large", LARGE, draw(LARGE))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEASURE, hf, large, tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    leaf = LARGE.num_layers * LARGE.d_model**2 * 4 / 1e6
    model = sum(x.nbytes for x in draw(LARGE).values()) / 1e6
    assert model > 7 * leaf
    # Three times the largest block (16 MiB), and what TensorStore holds.
    assert float(done.stdout.splitlines()[-1]) < 3 * leaf
