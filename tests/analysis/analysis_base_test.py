"""Statistics of adapters over their base: shifts, tokens, hidden states."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.analysis.hidden_states import displacement, maps
from aligner_jax.analysis.promoted import logit_shift, moved, probability_shift, token_text
from aligner_jax.analysis.prompts import Texts, default_examples, tokenize_prompts
from aligner_jax.analysis.shifts import cosines, look
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.errors import InputError
from aligner_jax.model.layers import layer_at
from aligner_jax.model.llama import transform
from aligner_jax.model.rope import rotation
from aligner_jax.peft import apply, init_adapter

METHODS = {
    "aligner": {"num_tokens": 3, "start_layer": 1},
    "llama_adapter": {"num_tokens": 2, "start_layer": 0},
    "lora": {"rank": 2, "targets": ("q", "v", "down")},
    "prefix": {"num_tokens": 2, "start_layer": 1},
    "prompt": {"num_tokens": 2},
    "bias": {"start_layer": 1},
    "full": {},
}


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Returns ten texts, which need two passes, padded to 8 tokens."""
    rng = np.random.default_rng(0)
    lengths_b = np.asarray([8, 3, 1, 5, 8, 2, 4, 6, 7, 5], np.int32)
    tokens_bt = np.where(np.arange(8)[None] < lengths_b[:, None], rng.integers(1, 40, (10, 8)), 0)
    return Texts([""] * 10, tokens_bt.astype(np.int32), lengths_b)


def test_one_token_adds_a_constant_vector(params, config, trained_adapter, texts):
    adapter = trained_adapter(num_tokens=1, start_layer=1)
    seen = look(params, adapter, texts, config=config)
    tokens_pd, gates_ln = (np.asarray(adapter.trainable[name], np.float64) for name in ("tokens_pd", "gates_ln"))
    v_lkh = np.einsum("d,ldkh->lkh", tokens_pd[0], np.asarray(params.layers.v_ldkh, np.float64)[1:])
    gated_lnh = gates_ln[..., None] * np.repeat(v_lkh, config.group_size, axis=1)
    added_ld = np.einsum("lnh,lnhd->ld", gated_lnh, np.asarray(params.layers.o_lnhd, np.float64)[1:])
    np.testing.assert_allclose(seen.mean_ld[1:], added_ld, rtol=1e-6, atol=1e-5)
    assert not seen.norm_lx[0].any()
    np.testing.assert_allclose(seen.norm_lx[1:] / np.linalg.norm(added_ld, axis=1)[:, None], 1, rtol=1e-6)
    np.testing.assert_allclose(seen.constancy_l[1:], 1, rtol=1e-5)
    assert np.isnan(seen.constancy_l[0])
    assert seen.norm_lx.shape == (3, int(texts.lengths_b.sum()))


@pytest.mark.parametrize("method", METHODS)
def test_the_walk_is_the_model(params, config, randomized, texts, method):
    adapter = randomized(init_adapter(method, config, **METHODS[method]))
    seen = look(params, adapter, texts, config=config)
    for row in (0, 1, 9):
        logits_1tv = apply(params, adapter, texts.tokens_bt[row : row + 1, : texts.lengths_b[row]], config=config)
        expected_v = jax.nn.log_softmax(logits_1tv[0, -1])
        np.testing.assert_allclose(seen.log_probs_bv[row], expected_v, rtol=1e-5, atol=1e-5)
    assert seen.adapted_l.sum() > 0
    assert np.isfinite(seen.mean_ld).all()


def test_a_bias_adds_itself(params, config, randomized, texts):
    adapter = randomized(init_adapter("bias", config, start_layer=1))
    seen = look(params, adapter, texts, config=config)
    np.testing.assert_allclose(seen.mean_ld[1:], adapter.trainable["o_bias_ld"], rtol=1e-6, atol=1e-6)
    assert not seen.mean_ld[0].any()


@pytest.mark.parametrize("target", ["v", "down"])
def test_what_a_weight_adds_is_for_the_same_input(params, config, randomized, texts, target):
    """The MLP's change in the last layer is the whole difference of the outputs; attention's lacks the response."""
    adapter = randomized(init_adapter("lora", config, rank=2, targets=(target,)))
    trainable = {name: x.at[:2].set(0) if name.startswith("b_") else x for name, x in adapter.trainable.items()}
    adapter = adapter.replace(trainable=trainable)
    one = Texts([""], texts.tokens_bt[:1], np.asarray([1], np.int32))
    alone, adapted = (look(params, which, one, config=config) for which in (None, adapter))
    np.testing.assert_allclose(adapted.mean_ld[:2], 0, atol=1e-6)
    shift_d = adapted.mean_ld[2]
    difference_d = adapted.last_lbd[2, 0] - alone.last_lbd[2, 0]
    if target == "v":
        # The MLP responds next: both outputs without it come from layers whose MLP outputs zero.
        layer = layer_at(params.layers, jnp.int32(2))
        layer = layer.replace(down_lfd=jnp.zeros_like(layer.down_lfd))
        cos_sin = rotation(jnp.zeros((1, 1), jnp.int32), config)
        factors = trainable["a_v_ldr"][2], trainable["b_v_lrkh"][2]
        changed = layer.replace(v_ldkh=layer.v_ldkh + 8 * jnp.einsum("dr,rkh->dkh", *factors))
        x_btd = jnp.asarray(alone.last_lbd[1][:, None])
        attend_itself = lambda q, k, v: jnp.repeat(v, config.group_size, axis=2)  # noqa: E731
        with_it, without = (
            transform(x_btd, w, attend_itself, cos_sin=cos_sin, config=config)[0, 0] for w in (changed, layer)
        )
        difference_d = np.asarray(with_it - without)
    np.testing.assert_allclose(shift_d, difference_d, rtol=1e-6, atol=1e-5)
    assert np.linalg.norm(shift_d) > 0.1


ONLY_THE_LAST = {
    "aligner": {"num_tokens": 3, "start_layer": 2},
    "lora": {"rank": 2, "targets": ("q", "o")},
    "prefix": {"num_tokens": 2, "start_layer": 2},
}


@pytest.mark.parametrize("method", ONLY_THE_LAST)
def test_what_is_added_is_what_the_output_lacks_without_it(params, config, randomized, texts, method):
    """The last layer has no MLP. All prefixes of one text are rows, so that each token is the last of a row."""
    adapter = randomized(init_adapter(method, config, **ONLY_THE_LAST[method]))
    trainable = {name: x.at[:2].set(0) if name.startswith("b_") else x for name, x in adapter.trainable.items()}
    adapter = adapter.replace(trainable=trainable)
    params = params.replace(layers=params.layers.replace(down_lfd=params.layers.down_lfd.at[2].set(0)))
    lengths_b = np.arange(1, 9, dtype=np.int32)
    beginnings = Texts([""] * 8, np.where(np.arange(8) < lengths_b[:, None], texts.tokens_bt[0], 0), lengths_b)
    alone, adapted = (look(params, which, beginnings, config=config) for which in (None, adapter))
    # All tokens of all prefixes, by position.
    place_x = np.concatenate([np.arange(length) for length in lengths_b])
    added_xd = (adapted.last_lbd[2] - alone.last_lbd[2])[place_x]
    norm_x, received_x = np.linalg.norm(added_xd, axis=1), np.linalg.norm(alone.last_lbd[1], axis=1)[place_x]
    np.testing.assert_allclose(adapted.norm_lx[2], norm_x, rtol=1e-5)
    np.testing.assert_allclose(adapted.relative_lx[2], norm_x / received_x, rtol=1e-5)
    np.testing.assert_allclose(adapted.mean_ld[2], added_xd.mean(axis=0), rtol=1e-6, atol=1e-5)
    constancy = np.linalg.norm(added_xd.mean(axis=0)) / norm_x.mean()
    assert adapted.constancy_l[2] == pytest.approx(constancy, rel=1e-5)
    assert constancy < 0.99
    assert norm_x.min() > 0.01


def test_padding_is_not_looked_at(params, config, trained_adapter, texts):
    adapter = trained_adapter(num_tokens=3)
    seen = look(params, adapter, texts, config=config)
    padded = texts._replace(tokens_bt=np.pad(texts.tokens_bt, [(0, 0), (0, 8)], constant_values=7))
    other = look(params, adapter, padded, config=config)
    for name in ("relative_lx", "mean_ld", "last_lbd", "final_bd", "log_probs_bv"):
        np.testing.assert_allclose(getattr(other, name), getattr(seen, name), rtol=1e-5, atol=1e-5, err_msg=name)


def test_directions_are_those_of_what_is_added(params, config, trained_adapter, texts):
    adapter = trained_adapter(num_tokens=1)
    turned = adapter.replace(trainable={**adapter.trainable, "gates_ln": -0.5 * adapter.trainable["gates_ln"]})
    first, second = (look(params, which, texts, config=config) for which in (adapter, turned))
    np.testing.assert_allclose(cosines(first, second), [np.nan, -1, -1], rtol=1e-12)
    np.testing.assert_allclose(cosines(first, first), [np.nan, 1, 1], rtol=1e-12)


def test_a_token_is_promoted_by_its_own_direction(params, config, texts, tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    seen = look(params, None, texts, config=config)
    head_dv = np.asarray(params.head_dv)
    shift_v = logit_shift(params, head_dv[:, 7] / np.asarray(params.norm_d), seen, config=config)
    unscaled_v = head_dv[:, 7] @ head_dv
    rms = np.sqrt(np.mean(np.square(seen.last_lbd[-1]), axis=-1)).mean()
    np.testing.assert_allclose(rms * shift_v, unscaled_v - unscaled_v.mean(), rtol=1e-6, atol=1e-5)
    found = moved(shift_v, tokenizer, 3)
    assert found.promoted[0] == (token_text(int(np.argmax(shift_v)), tokenizer), shift_v.max())
    assert found.demoted[0][1] == shift_v.min()
    assert [len(end) for end in found] == [3, 3]
    assert [value for _, value in found.demoted] == sorted(value for _, value in found.demoted)
    # Rows of the embedding beyond the vocabulary are no tokens.
    padded_v = np.pad(np.eye(tokenizer.vocab_size)[3], (0, 2), constant_values=9)
    assert moved(padded_v, tokenizer, 1).promoted == [(token_text(3, tokenizer), 1)]


def test_probabilities_move_by_as_much_up_as_down(params, config, trained_adapter, texts):
    alone, adapted = (look(params, which, texts, config=config) for which in (None, trained_adapter()))
    shift_v = probability_shift(alone, adapted)
    assert shift_v.sum() == pytest.approx(0, abs=1e-6)
    expected_v = np.mean(np.exp(adapted.log_probs_bv) - np.exp(alone.log_probs_bv), axis=0)
    np.testing.assert_allclose(shift_v, expected_v, rtol=0, atol=1e-7)
    assert np.abs(shift_v).max() > 0.01


def test_tokens_can_be_read(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    read = {tokenizer.backend.token(i): token_text(i, tokenizer) for i in range(tokenizer.vocab_size)}
    assert read["<|im_end|>"] == "<|im_end|>"
    assert (read["Ġ"], read["Ċ"]) == ("␣", "⏎")
    assert all(text and text.isprintable() and " " not in text for text in read.values())


def test_prompts_are_wrapped_and_cut_at_their_beginning(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    texts = tokenize_prompts(default_examples()[:3], tokenizer, PromptFormat("chat"), longest=10)
    whole = tokenizer.encode("<|im_start|>user\n" + texts.questions[0] + "<|im_end|>\n<|im_start|>assistant\n")
    assert texts.tokens_bt.shape[1] % 32 == 0
    assert texts.tokens_bt[0, : texts.lengths_b[0]].tolist() == whole[-10:]
    # The template begins with BOS, and BOS occurs once, whether the template or the tokenizer adds it.
    assert whole[0] == tokenizer.bos_id
    for add_bos in (False, True):
        asking = dataclasses.replace(tokenizer, add_bos=add_bos)
        uncut = tokenize_prompts(default_examples()[:1], asking, PromptFormat("chat"), longest=1000)
        assert uncut.tokens_bt[0, : uncut.lengths_b[0]].tolist() == whole


def test_hidden_states_are_mapped_and_their_moves_measured(params, config, trained_adapter, texts):
    adapter = trained_adapter()
    alone, adapted = (look(params, which, texts, config=config) for which in (None, adapter))
    found = maps([alone, adapted])
    assert [one.depth for one in found] == ["after layer 0", "after layer 1", "after the final norm"]
    # Layer 0 is not adapted, so both models' states have the same coordinates there.
    np.testing.assert_allclose(found[0].pca_mb2[0], found[0].pca_mb2[1], atol=1e-6)
    assert np.abs(found[2].pca_mb2[0] - found[2].pca_mb2[1]).max() > 0.1
    again = maps([alone, adapted])
    np.testing.assert_array_equal(found[2].tsne_mb2, again[2].tsne_mb2)
    move = displacement(alone, adapted)
    assert move.relative_l[0] == pytest.approx(0, abs=1e-6)
    assert move.relative_l[2] > 0.1
    assert all(0 < one.explained[1] < one.explained[0] < sum(one.explained) <= 1 for one in found)
    assert np.isnan(displacement(alone, alone).common_l).all()
    moved_by = np.ones(config.d_model)
    everywhere = displacement(alone, dataclasses.replace(alone, last_lbd=alone.last_lbd + moved_by))
    np.testing.assert_allclose(everywhere.common_l, 1, rtol=1e-12)
    to_and_fro_b1 = np.tile([1, -1], 5)[:, None]
    undone = displacement(alone, dataclasses.replace(alone, last_lbd=alone.last_lbd + moved_by * to_and_fro_b1))
    np.testing.assert_allclose(undone.common_l, 0, atol=1e-12)
    np.testing.assert_allclose(undone.relative_l, everywhere.relative_l, rtol=1e-12)
    states_bd = alone.last_lbd[2]
    spread = np.linalg.norm(states_bd - states_bd.mean(axis=0), axis=1).mean()
    assert everywhere.relative_l[2] == pytest.approx(4 / spread, rel=1e-6)
    few = dataclasses.replace(alone, last_lbd=alone.last_lbd[:, :3], final_bd=alone.final_bd[:3])
    with pytest.raises(InputError, match="there are 3 prompts"):
        maps([few, few])
