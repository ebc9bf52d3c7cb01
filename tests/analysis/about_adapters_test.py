"""The sections on adapters without their base: contents of their tables, and the arguments of their figures."""

import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.analysis import about_adapters, adapter_figures
from aligner_jax.analysis.named import Named
from aligner_jax.analysis.rank import entropy_rank, fresh_spectrum, participation_ratio
from aligner_jax.analysis.report import Picture
from aligner_jax.analysis.write import numbers
from aligner_jax.peft import Adapter, init_adapter


@pytest.fixture(autouse=True)
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple]]:
    """Records the arguments of each figure; none is drawn."""
    found: dict[str, list[tuple]] = {}

    def note(name: str):
        def draw(*given) -> Picture:
            found.setdefault(name, []).append(given)
            return Picture(name, "", b"", b"")

        return draw

    for name in ("gate_map", "gate_spreads", "similarities", "spectra"):
        monkeypatch.setattr(adapter_figures, name, note(name))
    return found


def _tables(**adapters: Adapter) -> dict[str, list[dict]]:
    return numbers(about_adapters.sections([Named(name, Path(name), each) for name, each in adapters.items()]))


def _aligner(config, tokens_pd, gates_ln) -> Adapter:
    fresh = init_adapter("aligner", config, num_tokens=len(tokens_pd), start_layer=1)
    arrays = {"tokens_pd": tokens_pd, "gates_ln": gates_ln}
    return fresh.replace(trainable={name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()})


def test_what_bfloat16_has_is_told(config):
    # Bfloat16 has the last bit of 1 + 2⁻⁷ but not of 1 + 2⁻⁸.
    tokens_pd = [[1 + 2**-7] * 8 + [1 + 2**-8] * 8]
    (row,) = _tables(a=_aligner(config, tokens_pd, np.zeros((2, 4))))["adapters"]
    assert row["trained numbers"] == 24
    assert row["exact in bfloat16"] == pytest.approx(16 / 24, rel=1e-12)
    assert row["options"] == "num_tokens 1, start_layer 1"


def test_gates_are_summed_up(config):
    tables = _tables(
        a=_aligner(config, np.ones((1, 16)), [[1, 1, 3, 3], [0, 0, 0, -8]]), b=init_adapter("lora", config)
    )
    (row,) = tables["gates"]
    assert (row["layers"], row["mean"], row["largest size"], row["at layer"]) == ("1 to 2", 0, 8, 2)
    assert (row["spread at first"], row["trend"]) == (1, None)
    assert row["spread at last"] == row["largest spread"] == pytest.approx(math.sqrt(12), rel=1e-12)
    assert [(each["layer"], each["smallest"], each["largest"]) for each in tables["gates_by_layer"]] == [
        (1, 1, 3), (2, -8, 0)
    ]  # fmt: skip


def test_pairs_stand_in_their_places(config, drawn):
    gates_ln = np.ones((2, 4))
    tokens_pd = np.random.default_rng(0).standard_normal((1, 16))
    given = {"a": tokens_pd, "b": -tokens_pd, "c": tokens_pd}
    tables = _tables(**{name: _aligner(config, x, gates_ln) for name, x in given.items()})
    found = {(row["first"], row["second"]): row for row in tables["pairs"] if row["array"] == "tokens_pd"}
    assert {pair: row["identical"] for pair, row in found.items()} == {("a", "b"): 0, ("a", "c"): 1, ("b", "c"): 0}
    (names, matrices), *_ = drawn["similarities"]
    assert names == ["a", "b", "c"]
    expected = np.asarray([[np.nan, -1, 1], [-1, np.nan, -1], [1, -1, np.nan]])
    np.testing.assert_allclose(matrices["cosine of the shared tokens"], expected, rtol=1e-12)


def test_ranks_stand_beside_those_of_fresh_tokens(config, drawn):
    one_layer = init_adapter("llama_adapter", config, num_tokens=2, start_layer=2)
    more_than_wide = init_adapter("aligner", config, num_tokens=20, start_layer=1)
    lora = init_adapter("lora", config, rank=2)
    rows = _tables(one_layer=one_layer, more_than_wide=more_than_wide, lora=lora)["effective_rank"]
    assert [(row["adapter"], row["matrices"], row["p"]) for row in rows] == [
        ("one_layer", 1, 2), ("more_than_wide", 1, 16), ("lora", 3, 2), ("lora", 3, 2)
    ]  # fmt: skip
    for row, shape in zip(rows, ((2, 16), (20, 16)), strict=False):
        fresh_p = fresh_spectrum(*shape)
        assert row["fresh, by entropy"] == float(entropy_rank(fresh_p))
        assert row["fresh, participation"] == float(participation_ratio(fresh_p))
        assert row["by entropy"] == pytest.approx(row["fresh, by entropy"], rel=0.2)
    # B is 0 at first.
    assert [(row["by entropy"], row["fresh, by entropy"]) for row in rows[2:]] == [(0, None)] * 2
    ((lines, fresh),) = drawn["spectra"]
    assert [number for number, _ in lines.values()] == [0, 1, 2, 2]
    assert list(fresh) == ["fresh tokens, 2 × 16", "fresh tokens, 20 × 16"]


def test_a_single_token_has_no_rank_and_is_named(config, drawn):
    one, two = (init_adapter("aligner", config, num_tokens=n) for n in (1, 2))
    rank = about_adapters.sections([Named("one", Path("one"), one), Named("two", Path("two"), two)])[-1]
    assert [row[0] for row in rank.tables[0].rows] == ["two"]
    assert "or rank 1, are left out: one." in rank.text
    alone = about_adapters.sections([Named("one", Path("one"), one)])[-1]
    assert (alone.tables, alone.pictures) == ((), ())
    assert len(drawn["spectra"]) == 1
