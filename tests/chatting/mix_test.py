"""Sums of adapters as users write them."""

import pytest

from aligner_jax.chatting.mix import Mix, parse_mix, parse_strength
from aligner_jax.errors import InputError


@pytest.mark.parametrize(
    ("text", "terms", "model"),
    [
        ("a", {"a": 1}, "a"),
        ("a@0.5 b", {"a": 0.5, "b": 1}, "a@0.5+b"),
        ("a@1e6 b@-1e6 c@1e-5", {"a": 1e6, "b": -1e6, "c": 1e-5}, "a@1000000+b@-1000000+c@1e-05"),
        ("a@0.1234567", {"a": 0.1234567}, "a@0.1234567"),
        ("  a@-1\tb@2e-3 c@1", {"a": -1, "b": 0.002, "c": 1}, "a@-1+b@0.002+c"),
    ],
)
def test_a_sum_has_names_and_strengths(text: str, terms: dict, model: str):
    assert dict(parse_mix(text).terms) == terms
    assert parse_mix(text).model == model


def test_the_strength_multiplies_every_weight():
    mix = Mix((("a", 0.5), ("b", 1.0)), 0.5)
    assert mix.weights == (("a", 0.25), ("b", 0.5))
    assert (mix.model, str(mix), str(Mix())) == ("a@0.25+b@0.5", "a@0.25+b@0.5", "base")


@pytest.mark.parametrize("text", ["", " ", "@1", "a@", "a@b", "a@nan", "a@inf", "a@1e7", "a a@2"])
def test_what_is_no_sum_is_refused(text: str):
    with pytest.raises(InputError):
        parse_mix(text)


def test_a_strength_is_a_number():
    assert parse_strength("0.5") == 0.5
    with pytest.raises(InputError, match="the strength 'much' is not a number"):
        parse_strength("much")
