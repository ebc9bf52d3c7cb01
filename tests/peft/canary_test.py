"""The canary of an adapter: true log-probabilities, a small and checked record, and a decision that noise bears."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from adapter_files import parts, write

import aligner_jax as aj
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.files.fields import Fields
from aligner_jax.model.quantized import Quantization
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.canary import (
    FLOOR,
    Canary,
    CanaryPrompt,
    Found,
    Row,
    candidates,
    choose,
    found_in,
    judge,
    parse_canary,
    parse_computed_in,
)
from aligner_jax.peft.canary_logits import next_logits
from aligner_jax.weights.base import Base

PROMPT = CanaryPrompt(Row((1, 2)), (5, 6, 7), (), (-1.0, -2.0, -9.0), (-3.0, -1.0, -0.5))
CANARY = Canary("float32", (PROMPT,))


@pytest.fixture
def base(config, params) -> Base:
    return Base(params, config)


@pytest.fixture
def saved(tmp_path: Path, trained_adapter, base: Base) -> Path:
    path = tmp_path / "a.safetensors"
    save_adapter(trained_adapter(1), path, base=base)
    return path


def test_the_file_records_the_log_probabilities_of_base_and_adapter(saved, trained_adapter, base):
    canary = read_artifact(saved).canary
    assert canary is not None
    assert canary.computed_in == "float32"
    for prompt in canary.prompts:
        tokens = jnp.asarray(prompt.row.ids)[None]
        for adapter, recorded in ((None, prompt.base), (trained_adapter(1), prompt.adapted)):
            log_probs_v = jax.nn.log_softmax(aj.apply(base.params, adapter, tokens, config=base.config)[0, -1])
            np.testing.assert_allclose(recorded, log_probs_v[jnp.asarray(prompt.tokens)], atol=1e-3)
            assert int(jnp.argmax(log_probs_v)) in prompt.tokens
    assert max(prompt.effect for prompt in canary.prompts) == canary.prompts[0].effect > 0.1
    assert len(parts(saved)[0]["__metadata__"]["canary"]) < 1500


def test_both_models_are_told_apart(saved, trained_adapter, base):
    canary = read_artifact(saved).canary
    assert canary is not None
    rows = [prompt.row for prompt in canary.prompts]
    third = trained_adapter(1, key=11)
    for adapter, status in ((trained_adapter(1), "active"), (None, "missing"), (third, "other")):
        logits_bv = next_logits(base.params, adapter, rows, base.config)
        assert judge(canary, found_in(canary, logits_bv)).status == status


@pytest.mark.parametrize(
    ("base", "canary"),
    [("abstract", True), (None, True), ("loaded", False), ("too large", True)],
)
def test_a_canary_is_left_out_rather_than_wrong(base, canary, config, params, trained_adapter, tmp_path):
    adapter = trained_adapter(1)
    if base == "abstract":
        known = Base(jax.eval_shape(lambda: params), config, loaded_fingerprint="f" * 64)
    else:
        known = None if base is None else Base(params, config)
    if base == "too large":
        adapter = jax.tree.map(lambda x: x * 1e38, adapter)
    path = tmp_path / "a.safetensors"
    save_adapter(adapter, path, base=known, canary=canary)
    assert read_artifact(path).canary is None


def test_equal_adapters_have_equal_canaries(saved, trained_adapter, base):
    again = saved.with_name("again.safetensors")
    save_adapter(trained_adapter(1), again, base=base)
    assert again.read_bytes() == saved.read_bytes()


@pytest.mark.parametrize("prompt_format", [None, {"template": "chat", "system": None}])
def test_prompts_have_text_where_there_is_a_tokenizer(prompt_format, tiny_model, tmp_path, randomized):
    base = aj.load_base(tiny_model)
    adapter = randomized(aj.init_adapter("aligner", base.config))
    save_adapter(adapter, tmp_path / "a.safetensors", base, prompt_format=prompt_format)
    canary = read_artifact(tmp_path / "a.safetensors").canary
    assert canary is not None
    for prompt in canary.prompts:
        assert base.tokenizer.encode(prompt.row.text) == list(prompt.row.ids)
        assert ("<|im_start|>" in prompt.row.text) == (prompt_format is not None)
        for token, name in zip(prompt.tokens, prompt.names, strict=True):
            assert base.tokenizer.decode([*prompt.row.ids, token]).endswith(name) == bool(name)


def test_prompts_that_a_template_makes_too_long_are_plain(tiny_model):
    tokenizer, long = aj.load_base(tiny_model).tokenizer, PromptFormat("chat", "be brief " * 100)
    assert candidates(tokenizer, long, 512, 64) == candidates(tokenizer, None, 512, 64)


def test_prompts_at_which_a_model_ends_come_last(tiny_model):
    tokenizer = aj.load_base(tiny_model).tokenizer
    rows = candidates(tokenizer, None, 512, 64)
    vocab_size = tokenizer.num_embeddings
    base_bv = np.zeros((len(rows), vocab_size))
    base_bv[:, tokenizer.encode("a")[0]] = 5
    adapted_bv = np.zeros_like(base_bv)
    # The first prompt has the largest effect, but the adapter ends there.
    adapted_bv[:, tokenizer.encode("b")[0]] = 9, 5, 7, 6
    adapted_bv[0, tokenizer.eos_id] = 10
    canary = choose(rows, base_bv, adapted_bv, tokenizer, "float32")
    assert canary is not None
    assert [rows.index(prompt.row) for prompt in canary.prompts] == [2, 3, 1]


def test_the_decision_bears_a_third_of_the_effect():
    """The effect is the root mean square of (2, 1, 8.5)."""
    adapted, step = np.asarray(PROMPT.adapted), np.asarray(PROMPT.base) - np.asarray(PROMPT.adapted)
    for share, status in ((0, "active"), (0.3, "active"), (0.36, "other"), (0.64, "other"), (0.7, "missing")):
        verdict = judge(CANARY, [Found((adapted + share * step).tolist())])
        assert verdict.status == status, share
        assert verdict.from_adapted == pytest.approx(8.5 * share)
        assert verdict.from_base == pytest.approx(8.5 * (1 - share))


def test_a_token_that_is_not_reported_is_improbable():
    """Its bound is below the adapter's log-probability of it, and above the base's."""
    assert judge(CANARY, [Found([-1.0, -2.0, None], at_most=-4.0)]).status == "missing"
    assert judge(CANARY, [Found([None, -1.0, -0.5], at_most=-2.9)]).status == "active"
    assert judge(CANARY, [Found([None, None, None], at_most=FLOOR)]).status == "other"


def test_a_token_that_is_reported_counts_whatever_the_others_do():
    """The only reported token is the most probable one, so that the bound of the others is near 0."""
    swapped = CanaryPrompt(Row((1, 2)), (5, 6, 7), (), (-0.05, -4.0, -5.0), (-4.0, -0.05, -5.0))
    canary = Canary("float32", (swapped,))
    assert judge(canary, [Found([None, -0.05, None], at_most=-0.05)]).status == "active"
    assert judge(canary, [Found([-0.05, None, None], at_most=-0.05)]).status == "missing"
    with pytest.raises(InputError, match="reports too few of the canary's tokens"):
        judge(canary, [Found([None, None, -5.0], at_most=-0.01)])


def test_an_effect_that_rounding_could_have_is_not_judged():
    prompt = CanaryPrompt(Row((1,)), (5,), (), (-1.0,), (-1.01,))
    with pytest.raises(InputError, match=r"by 0\.01 only"):
        judge(Canary("float32", (prompt,)), [Found([-1.0])])


def test_a_record_comes_back():
    named = CanaryPrompt(Row((1,), "Why?\n"), (5,), (" é",), (-1.0,), (-2.5,))
    canary = Canary("bfloat16", (PROMPT, named))
    assert parse_canary(Fields(json.loads(canary.as_json()), "it")) == canary


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("quantization", [None, Quantization("int8"), Quantization("int4", 16)])
def test_the_base_of_a_record_comes_back(dtype, quantization, config, params):
    held = Base(jax.tree.map(lambda x: x.astype(dtype), params), config, quantization=quantization)
    assert parse_computed_in(held.held_as) == (dtype, quantization)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"prompts": []}, "prompts is missing or empty"),
        ({"prompts": [3]}, "prompts is [3], not a list of at most 3 objects"),
        ({"prompts": [{}] * 4}, "prompts is a list, not a list of at most 3 objects"),
        ({"computed_in": 3}, "computed_in is 3, not text"),
        ({"computed_in": "float64"}, "computed_in is not known: 'float64' is no dtype"),
        ({"computed_in": "float32 int4"}, "computed_in is not known: 'float32 int4' is no dtype"),
        ({"computed_in": "float32 int4 in groups of 1"}, "computed_in is not known: group_size is 1"),
        ({"ids": []}, "prompts[0].ids has 0 token ids, not 1 to 64"),
        ({"ids": [1] * 65}, "prompts[0].ids has 65 token ids, not 1 to 64"),
        ({"ids": [-1]}, "prompts[0].ids is [-1], not a list of integers"),
        ({"tokens": []}, "prompts[0].tokens has 0 token ids"),
        ({"base": [-1.0]}, "prompts[0].base has 1 entries for 3 tokens"),
        ({"base": [-1.0, 2.0, -3.0]}, "not a list of numbers from -1e+06 to 0.01"),
        ({"adapted": [-1.0, float("nan"), -3.0]}, "not a list of numbers from -1e+06 to 0.01"),
        ({"text": "Why?"}, "prompts[0].names has 0 entries for 3 tokens"),
        ({"text": "Why?", "names": [1, 2, 3]}, "prompts[0].names is [1, 2, 3], not a list of texts"),
    ],
)
def test_a_damaged_canary_is_one_sentence_and_the_adapter_loads(change, sentence, saved):
    values = json.loads(CANARY.as_json())
    (values if change.keys() <= values.keys() else values["prompts"][0]).update(change)
    header, body = parts(saved)
    header["__metadata__"]["canary"] = json.dumps(values)
    write(saved, header, body)
    artifact = read_artifact(saved)
    with pytest.raises(InputError) as caught:
        _ = artifact.canary
    assert str(caught.value).startswith(f"{saved}: its metadata field 'canary': ")
    assert sentence in str(caught.value)
