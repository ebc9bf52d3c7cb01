"""Bases in Orbax's format: bit-equal to their source, complete or absent."""

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
import pytest
from model_folders import CONFIG, draw, meta_params, meta_parts, write_hf, write_meta
from orbax_folders import assert_equal, write
from places import ROOT

from aligner_jax.data.tokenizer_files import load_tokenizer, tokenizer_files
from aligner_jax.errors import InputError
from aligner_jax.runtime.sharding import make_mesh, param_shardings
from aligner_jax.weights import orbax
from aligner_jax.weights.assemble import open_parts
from aligner_jax.weights.base import load_base, open_base
from aligner_jax.weights.leaves import leaf_specs
from aligner_jax.weights.orbax import write_orbax

pytestmark = pytest.mark.usefixtures("small_blocks")


LARGE = dataclasses.replace(
    CONFIG, vocab_size=4096, d_model=512, d_mlp=512, num_layers=32, num_heads=8, num_kv_heads=8, head_dim=64
)
"""A config of 251 MB in float32; a leaf of all layers has 34 MB and a matrix at most 8 MB."""

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_read_is_what_was_written(orbax_base, hf_base, dtype):
    base = load_base(orbax_base, dtype)
    assert_equal(base, load_base(hf_base, dtype))
    assert base.tokenizer is None
    assert base.fingerprint == load_base(hf_base).fingerprint


def test_leaves_have_blocks_of_layers_no_larger_than_the_largest_matrix(orbax_base):
    blocks = json.loads((orbax_base / "base.json").read_text())["blocks"]
    # The largest matrix is the embedding, of 64 × 32.
    assert blocks["embed_vd"] == [64]
    assert blocks["gate_ldf"] == [1, 1, 1]
    assert blocks["k_ldkh"] == [3]
    assert sorted(path.name for path in (orbax_base / "params" / "gate_ldf").iterdir()) == ["0", "1", "2"]


def test_a_checkpoint_in_bfloat16(hf_base, tmp_path):
    half = write(hf_base, tmp_path / "half", "bfloat16")
    assert_equal(load_base(half, "bfloat16"), load_base(hf_base, "bfloat16"))
    assert load_base(half).params.norm_d.dtype == np.float32


def test_parts_on_devices_and_what_finish_makes_of_them(orbax_base, hf_base):
    names = []

    def finish(name: str, leaf: jax.Array) -> jax.Array:
        names.append(name)
        return -leaf

    shardings = functools.partial(param_shardings, mesh=make_mesh())
    base, plain = load_base(orbax_base, shardings=shardings, finish=finish), load_base(hf_base)
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


def test_a_base_is_whole_or_absent(hf_base, tmp_path):
    checkpoint = open_base(hf_base)
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


def test_a_base_of_orbax_is_not_converted_again(orbax_base):
    with pytest.raises(InputError, match="is a base in Orbax's form already"):
        open_base(orbax_base)


def test_any_part_of_a_leaf_is_read_each_chunk_once(hf_base, tmp_path, monkeypatch):
    monkeypatch.setattr(orbax, "_CHUNK_BYTES", 256)
    checkpoint = open_base(hf_base)
    parts = open_parts(checkpoint, "float32")
    write_orbax(tmp_path / "out", checkpoint.config, parts, "float32", {})
    assert_equal(load_base(tmp_path / "out"), load_base(hf_base))
    read, plain = [], orbax.Block.read
    monkeypatch.setattr(orbax.Block, "read", lambda block, at, crc: read.append((block, at)) or plain(block, at, crc))
    spec, rng = leaf_specs(CONFIG)["gate_ldf"], np.random.default_rng(0)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        leaf = orbax._open(tmp_path / "out", "gate_ldf", spec, [1, 1, 1], None, np.dtype(np.float32), pool)
        assert leaf[0][1].num_chunks > 20
        (whole,) = parts("gate_ldf", [[slice(None)] * 3])
        for _ in range(20):
            # Layers have several blocks, and parts share chunks.
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
def test_the_host_has_room_for_a_few_matrices_only(hf_base, tmp_path):
    large = write_hf(tmp_path / "large", LARGE, draw(LARGE))
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", MEASURE, hf_base, large, tmp_path / "out"]
    leaf = LARGE.num_layers * LARGE.d_model**2 * 4 / 1e6
    model = sum(x.nbytes for x in draw(LARGE).values()) / 1e6
    assert model > 7 * leaf
    peaks = []
    for _ in range(3):
        done = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.splitlines()[-1]))
        # Three times the largest block (16 MiB), and TensorStore's own memory, of which its threads hold more at once
        # when other programs keep them waiting.
        if peaks[-1] < 3 * leaf:
            break
        shutil.rmtree(tmp_path / "out")
    assert min(peaks) < 3 * leaf, peaks
