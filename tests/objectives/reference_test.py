"""A reference's log-probabilities of all answers: computed once, kept on disk, never used for another reference."""

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.data.pair_rows import eval_pair_batches, offsets
from aligner_jax.errors import InputError
from aligner_jax.files.identity import later
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.model.quantized import Quantization
from aligner_jax.objectives.reference import adapter_digest, fingerprint, load_reference, load_table, save_table, table
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.runtime.fields import number
from aligner_jax.weights.base import Base


@pytest.fixture
def base(config: LlamaConfig, params: Params) -> Base:
    return Base(params, config)


def test_an_option_that_a_later_release_adds_counts_only_where_it_is_set(trained_adapter):
    adapter = trained_adapter(1)
    fields = [("slope", float, number(1.0, above=0, later=True)), ("form", str, later("sum"))]
    kind = dataclasses.make_dataclass("Newer", fields, bases=(type(adapter.options),), frozen=True, kw_only=True)
    newer = adapter.replace(options=kind(**vars(adapter.options)))
    assert str(newer) == str(adapter)
    assert newer.options.as_dict() == adapter.options.as_dict()
    assert newer.options["slope"] == 1.0
    assert adapter_digest(newer) == adapter_digest(adapter)
    for change in ({"slope": 2.0}, {"form": "product"}):
        other = adapter.replace(options=dataclasses.replace(newer.options, **change))
        assert adapter_digest(other) != adapter_digest(adapter)
        assert f"{next(iter(change))}=" in str(other)


def pairs(count: int = 3) -> list[dict]:
    random = np.random.default_rng(count)

    def document():
        tokens = random.integers(0, 40, random.integers(2, 8)).astype(np.int32)
        return {"tokens": tokens, "loss_mask": np.arange(len(tokens)) > 0}

    return [{"chosen": document(), "rejected": document()} for _ in range(count)]


def test_the_names_of_references(base: Base, trained_adapter, tmp_path: Path):
    initial, other = trained_adapter(1), trained_adapter(2, key=5)
    assert load_reference("initial", base, initial) is initial
    assert load_reference(None, base, initial) is load_reference("base", base, initial) is None
    save_adapter(other, tmp_path / "other.safetensors", base)
    loaded = load_reference(str(tmp_path / "other.safetensors"), base, initial)
    assert loaded.options == other.options
    jax.tree.map(np.testing.assert_array_equal, loaded.trainable, other.trainable)
    with pytest.raises(InputError, match="nowhere does not exist"):
        load_reference("nowhere", base, initial)
    changed = base.replace(params=base.params.replace(norm_d=base.params.norm_d + 1))
    with pytest.raises(InputError, match="other weights"):
        load_reference(str(tmp_path / "other.safetensors"), changed, initial)


@pytest.mark.parametrize("packing", [True, False])
def test_a_table_is_in_the_order_of_the_pairs(base: Base, trained_adapter, packing: bool):
    all_pairs, adapter = pairs(9), trained_adapter(2)
    options = {"batch_size": 4, "sequence_length": 16, "packing": packing}
    whole_t = table(base.params, adapter, eval_pair_batches(all_pairs, **options), all_pairs, config=base.config)
    assert whole_t.dtype == np.float32
    starts = offsets(all_pairs)
    for first in (0, 4, 8):
        one = [all_pairs[first]]
        one_t = table(base.params, adapter, eval_pair_batches(one, **options), one, config=base.config)
        np.testing.assert_allclose(one_t, whole_t[starts[first] : starts[first + 1]], atol=1e-5)
        masks = [one[0][side]["loss_mask"] for side in ("chosen", "rejected")]
        np.testing.assert_array_equal(one_t < 0, np.concatenate(masks))


def test_a_table_is_taken_again_only_for_what_it_was_made_from(base: Base, trained_adapter, tmp_path: Path):
    path, adapter = tmp_path / "reference_train.npz", trained_adapter(1)
    digests = fingerprint(base, adapter, pairs())
    assert load_table(path, digests, pairs()) == (None, "")
    table_t = np.random.default_rng(0).standard_normal(offsets(pairs())[-1]).astype(np.float32)
    save_table(path, table_t, digests)
    content = path.read_bytes()
    found_t, why = load_table(path, fingerprint(base, adapter, pairs()), pairs())
    np.testing.assert_array_equal(found_t, table_t)
    assert why == ""
    save_table(path, table_t, digests)
    assert path.read_bytes() == content

    moved = adapter.replace(trainable={**adapter.trainable, "gates_ln": adapter.trainable["gates_ln"] + 1e-3})
    masked = pairs()
    masked[1]["rejected"]["loss_mask"] = ~masked[1]["rejected"]["loss_mask"]
    other_base = base.replace(params=base.params.replace(norm_d=base.params.norm_d + 1))
    coarse = base.replace(params=jax.tree.map(lambda x: x.astype(jnp.bfloat16), base.params))
    # `load_base` keeps the fingerprint of the weights before quantization, too.
    quantized = [
        base.replace(quantization=quantization, loaded_fingerprint=base.fingerprint)
        for quantization in (Quantization("int8"), Quantization("int4"), Quantization("int4", 16))
    ]
    assert len({each.identity for each in [base, coarse, *quantized]}) == 5
    for other, part in (
        (fingerprint(base, moved, pairs()), "another reference adapter"),
        (fingerprint(base, None, pairs()), "another reference adapter"),
        (fingerprint(base, adapter, masked), "another tokenized pairs"),
        (fingerprint(base, adapter, pairs()[::-1]), "another tokenized pairs"),
        (fingerprint(other_base, adapter, pairs()), "another base"),
        (fingerprint(coarse, adapter, pairs()), "another base"),
        *((fingerprint(each, adapter, pairs()), "another base") for each in quantized),
        (fingerprint(other_base, moved, pairs()), "another base and another reference adapter"),
    ):
        found_t, why = load_table(path, other, pairs())
        assert found_t is None
        assert why == f"{path} was made with {part}"


def test_a_table_of_an_earlier_release_is_taken(base: Base, tmp_path: Path):
    table_t = np.ones(offsets(pairs())[-1], np.float32)
    save_table(tmp_path / "t.npz", table_t, {**fingerprint(base, None, pairs()), "base": f"{base.fingerprint} float32"})
    found_t, _ = load_table(tmp_path / "t.npz", fingerprint(base, None, pairs()), pairs())
    np.testing.assert_array_equal(found_t, table_t)


def _npz(**arrays: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


MADE_FROM = np.asarray('{"base": "a"}')


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[: len(b) // 2],
        lambda b: b"",
        lambda b: b"PK" + b[5:],
        lambda b: b"x",
        lambda b: _npz(log_probs_t=np.zeros(5, np.float32), fingerprint=MADE_FROM),
        lambda b: _npz(log_probs_t=np.zeros(offsets(pairs())[-1]), fingerprint=MADE_FROM),
        lambda b: _npz(log_probs_t=np.zeros(2**25, np.float32), fingerprint=MADE_FROM),
        lambda b: _npz(log_probs_t=np.zeros(offsets(pairs())[-1], np.float32), fingerprint=np.asarray("[]")),
        lambda b: _npz(log_probs_t=np.zeros(offsets(pairs())[-1], np.float32), fingerprint=np.asarray("[" * 10_000)),
    ],
)
def test_a_damaged_table_is_not_taken(tmp_path: Path, damage):
    path = tmp_path / "reference_train.npz"
    save_table(path, np.ones(offsets(pairs())[-1], np.float32), {"base": "a"})
    path.write_bytes(damage(path.read_bytes()))
    found_t, why = load_table(path, {"base": "a"}, pairs())
    assert found_t is None
    assert why.startswith(f"{path} is damaged (")
    assert why.isprintable()
