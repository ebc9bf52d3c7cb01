"""The bias that is closest to several prefix tokens: exact for constants, least squares otherwise, and reported."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from command_runs import run_command

import aligner_jax as aj
from aligner_jax.analysis.layers import walk
from aligner_jax.data.documents import make_document
from aligner_jax.data.sources import load_examples
from aligner_jax.exports.nearest import nearest_bias
from aligner_jax.exports.source import open_stored
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft.fold import make_fold
from aligner_jax.weights.base import Base

A, B, C = ([1, 2, 3, 4, 9, 11], [1] * 6), ([5, 6, 7, 8, 9], [1] * 5), ([3, 1, 2], [1] * 3)
DATA = '[{"instruction": "Name a colour.", "output": "a blue pixel"}, {"instruction": "Again", "output": "red red"}]'


@pytest.fixture
def base(params, config) -> Base:
    return Base(params=params, config=config)


@pytest.fixture
def rows(pack) -> list[Batch]:
    return [pack([[A, B], [C]], 12), pack([[B], []], 12)]


def logits(base: Base, adapter: aj.Adapter, rows: list[Batch]) -> np.ndarray:
    return np.asarray(aj.apply(base.params, adapter, rows[0].tokens_bt, config=base.config))


def test_equal_tokens_have_constant_weights_and_are_met_exactly(base, rows, trained_adapter):
    adapter = trained_adapter(num_tokens=3)
    token_1d = adapter.trainable["tokens_pd"][:1]
    constant = adapter.replace(trainable={**adapter.trainable, "tokens_pd": jnp.repeat(token_1d, 3, axis=0)})
    found = nearest_bias(base, constant, rows)
    assert (found.method, found.options.start_layer, found.options.target) == ("bias", 1, "o")
    np.testing.assert_allclose(logits(base, found, rows), logits(base, constant, rows), atol=1e-5)
    assert np.abs(logits(base, found, rows) - logits(base, None, rows)).max() > 1e-2
    assert set(make_fold([found], base.config).needs) == {"o_bias_ld"}


@pytest.mark.parametrize("gates", ["head", "kv_head", "token"])
def test_one_token_has_the_bias_that_it_folds_to(base, rows, gates, randomized):
    num_tokens = 2 if gates == "token" else 1
    adapter = randomized(aj.init_adapter("aligner", base.config, num_tokens=num_tokens, gates=gates, start_layer=1))
    fold = make_fold([adapter], base.config)
    found = nearest_bias(base, adapter, rows).trainable["o_bias_ld"]
    for layer in (1, 2):
        inputs = {name: np.asarray(getattr(base.params.layers, name))[layer] for name in fold.needs["o_bias_ld"]}
        np.testing.assert_allclose(found[layer - 1], fold.leaf("o_bias_ld", layer, inputs), atol=1e-5)


@pytest.mark.parametrize("method", ["aligner", "llama_adapter"])
def test_no_other_constant_is_closer_in_any_layer(base, pack, method, randomized):
    fresh = aj.init_adapter(method, base.config, num_tokens=4, start_layer=1)
    adapter = randomized(fresh)
    adapter = adapter.replace(trainable={name: 5 * x for name, x in adapter.trainable.items()})
    documents = [A, B, C, A]
    found_ld = np.asarray(nearest_bias(base, adapter, [pack([[A, B], [C, A]], 12)]).trainable["o_bias_ld"])
    # Rows of one document, since the walk takes texts.
    tokens_bt, lengths_b = np.zeros((4, 12), np.int32), np.array([len(tokens) for tokens, _ in documents])
    for row, (tokens, _) in enumerate(documents):
        tokens_bt[row, : len(tokens)] = tokens
    seen = walk(base.params, adapter, jnp.asarray(tokens_bt), jnp.asarray(lengths_b), config=base.config)
    norm_lbt, sum_ld, count = np.asarray(seen.shift_lbt), np.asarray(seen.shift_sum_ld), lengths_b.sum()

    def squares_l(bias_ld: np.ndarray) -> np.ndarray:
        of_shifts_l = (norm_lbt**2).sum(axis=(1, 2))[1:]
        return of_shifts_l - 2 * (bias_ld * sum_ld[1:]).sum(axis=1) + count * (bias_ld**2).sum(axis=1)

    best_l = squares_l(found_ld)
    assert (best_l > 1e-3).all()
    rng = np.random.default_rng(0)
    for _ in range(20):
        other_ld = found_ld + 0.05 * rng.standard_normal(found_ld.shape)
        assert (squares_l(other_ld) > best_l).all()


def test_padding_and_rows_do_not_matter(base, pack, trained_adapter):
    adapter = trained_adapter(num_tokens=3)
    packed, apart = [pack([[A, B], [C]], 12)], [pack([[A]], 8), pack([[B]], 8), pack([[C], []], 8)]
    found = [nearest_bias(base, adapter, rows).trainable["o_bias_ld"] for rows in (packed, apart)]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.parametrize(("method", "options"), [("prompt", {}), ("prefix", {}), ("lora", {"rank": 1}), ("bias", {})])
def test_other_methods_have_no_nearest_bias(base, rows, method, options):
    with pytest.raises(aj.InputError, match=f"method '{method}' has no nearest bias"):
        nearest_bias(base, aj.init_adapter(method, base.config, **options), rows)


def test_no_documents_are_no_mean(base, trained_adapter):
    with pytest.raises(aj.InputError, match="there are no documents"):
        nearest_bias(base, trained_adapter(num_tokens=2), [])


def test_the_command_folds_the_bias_and_prints_the_losses(tiny_model, randomized, tmp_path):
    base = aj.load_base(tiny_model)
    adapter = randomized(aj.init_adapter("aligner", base.config, num_tokens=3, start_layer=1))
    aj.save_adapter(adapter, tmp_path / "a.safetensors", base, prompt_format={"template": "alpaca", "system": None})
    (tmp_path / "mine.json").write_text(DATA)
    usual = [f"--base={tiny_model}", f"--adapter={tmp_path / 'a.safetensors'}", "--to=hf", f"--out={tmp_path / 'out'}"]
    refused = run_command("export", *usual)
    assert (refused.status, refused.out) == (1, "")
    assert "3 prefix tokens" in refused.err
    assert refused.err.endswith("add --nearest --data=FILE\n")
    ended = run_command("export", *usual, "--nearest", f"--data={tmp_path / 'mine.json'}")
    assert (ended.status, ended.err) == (0, "")
    (line,) = [line for line in ended.out.splitlines() if "held-out loss" in line]
    card = (tmp_path / "out" / "README.md").read_text()
    assert line[1:] in card
    assert "with the bias that is closest to one adapter folded in at strength 1." in card
    assert "2 examples of mine.json" in line
    of = {name: float(re.findall(rf"{name} (\d+\.\d+)", line)[0]) for name in ("base", "adapter", "bias")}
    stored = open_stored(str(tmp_path / "out"))
    assert stored.config.o_bias
    again = aj.load_base(tmp_path / "out")
    assert len(set(of.values())) == 3
    assert of == pytest.approx(losses(base, adapter, again, tmp_path / "mine.json"), abs=1e-4)


def losses(base: Base, adapter: aj.Adapter, written: Base, data) -> dict[str, float]:
    """Returns losses per target token, computed document by document without packing."""
    totals, targets = {"base": 0.0, "adapter": 0.0, "bias": 0.0}, 0
    for example in load_examples(data):
        document = make_document(example, base.tokenizer, "alpaca")
        tokens_bt = jnp.asarray(document["tokens"])[None]
        mask_t = document["loss_mask"][1:]
        targets += int(mask_t.sum())
        for name, (model, applied) in {
            "base": (base, None), "adapter": (base, adapter), "bias": (written, None)
        }.items():  # fmt: skip
            logits_tv = np.asarray(aj.apply(model.params, applied, tokens_bt, config=model.config))[0, :-1]
            log_z_t = np.log(np.exp(logits_tv).sum(axis=-1))
            totals[name] += float(
                ((log_z_t - logits_tv[np.arange(len(mask_t)), document["tokens"][1:]]) * mask_t).sum()
            )
    return {name: total / targets for name, total in totals.items()}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--nearest"], "--nearest needs held-out examples"),
        (["--data=x"], "--data is of --nearest"),
        (["--rows=3"], "--rows is of --nearest"),
        (["--nearest", "--data=x", "--bias=v"], "so --bias=v does not go with it"),
        (["--nearest", "--data=x", "--adapter=b"], "--nearest approximates one adapter"),
        (["--nearest", "--data=x", "--to=adapter"], "--nearest is of a base's weights"),
    ],
)
def test_flags_that_do_not_go_together(flags, sentence, tmp_path):
    ended = run_command("export", "--base=b", "--adapter=a", "--to=hf", f"--out={tmp_path / 'out'}", *flags)
    assert (ended.status, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert sentence in ended.err
