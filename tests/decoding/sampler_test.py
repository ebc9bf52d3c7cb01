"""Sampling: each row gets the tokens that the model gives it alone."""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np
import pytest
from places import SHARED

from aligner_jax.decoding import engine, programs, sampler
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.lengths import padded_slots, slots_of
from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError
from aligner_jax.model.llama import LlamaConfig, Params
from aligner_jax.peft import Adapter, apply, with_strength
from aligner_jax.weights.base import load_base

ALPHABET = "abcdefghijklmnopqrstuvwxyz .,;:!?'-()[]"
PROMPTS = ["a dog", "the cat sat.", "x"]
NEW = 12


class Letters(NamedTuple):
    """A tokenizer with a token per character; the last of the 40 ids is BOS."""

    stop_ids: frozenset[int] = frozenset()
    add_bos: bool = False

    def encode(self, text: str, *, bos: bool = False, eos: bool = False) -> list[int]:
        return [39] * bos + [ALPHABET.index(character) for character in text]

    def decode(self, ids) -> str:
        return "".join(ALPHABET[i] if i < 39 else "" for i in ids)


class LetterModel(NamedTuple):
    params: Params
    config: LlamaConfig
    tokenizer: Letters | None = Letters()


@pytest.fixture(scope="module")
def base(config: LlamaConfig, params: Params) -> LetterModel:
    return LetterModel(params, config)


@pytest.fixture(scope="module")
def adapter(trained_adapter) -> Adapter:
    return trained_adapter(3, start_layer=0)


@pytest.fixture(scope="module")
def greedy(base: LetterModel, adapter: Adapter) -> list[str]:
    return sample(base, adapter, PROMPTS, max_new_tokens=NEW)


@pytest.mark.parametrize("add_bos", [False, True])
def test_greedy_takes_the_most_probable_token_of_the_uncached_model(add_bos: bool, base: LetterModel, adapter: Adapter):
    tokenizer = Letters(add_bos=add_bos)
    texts = sample(base._replace(tokenizer=tokenizer), adapter, PROMPTS, max_new_tokens=NEW)
    tokens_bt, starts = np.zeros((3, 32), np.int32), []
    for row, (prompt, text) in enumerate(zip(PROMPTS, texts, strict=True)):
        ids = tokenizer.encode(prompt + text, bos=add_bos)
        tokens_bt[row, : len(ids)] = ids
        starts.append(len(prompt) + add_bos)
        assert len(text) <= NEW
    logits_btv = jax.jit(apply, static_argnames=("config",))(base.params, adapter, tokens_bt, config=base.config)
    best_bt = np.asarray(logits_btv).argmax(axis=-1)
    for row, (start, text) in enumerate(zip(starts, texts, strict=True)):
        assert tokenizer.decode(best_bt[row, start - 1 : start - 1 + NEW]) == text


def test_a_batch_of_prompts_of_different_lengths_equals_the_prompts_alone(base: LetterModel, adapter, greedy):
    alone = [sample(base, adapter, [prompt], max_new_tokens=NEW)[0] for prompt in PROMPTS]
    assert greedy == alone
    assert len(set(greedy)) == len(greedy)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_one_row_of_half_precision_equals_the_same_row_among_others(base: LetterModel, adapter: Adapter, dtype: str):
    half = base._replace(params=jax.tree.map(lambda x: x.astype(dtype), base.params))
    pair = sample(half, adapter, PROMPTS[:1] * 2, max_new_tokens=NEW, temperature=0.0)
    ids = [half.tokenizer.encode(PROMPTS[0])]
    steps = list(
        sampler.continue_ids(
            half.params, adapter, ids, config=half.config, max_new_tokens=NEW, sampling=Sampling(), tokens_per_call=5
        )
    )
    assert [len(tokens) for tokens in steps] == [1] * NEW
    assert [half.tokenizer.decode(row) for row in zip(*steps, strict=True)] == pair[:1]


@pytest.mark.parametrize(("lengths", "new", "count"), [(range(1, 65, 4), NEW, 4), (range(513, 641, 16), 200, 1)])
def test_a_padded_length_has_one_program(lengths: range, new: int, count: int, base: LetterModel):
    """With slots that follow the prompts in steps of 16, there are 8 programs that prefill, and 5 or 8 that decode."""
    config = dataclasses.replace(base.config, context_length=1024)
    jitted = (programs.admit, programs.decode)
    before = [each._cache_size() for each in jitted]
    for length in lengths:
        steps = sampler.continue_ids(
            base.params, None, [[1] * length], config=config, max_new_tokens=new, sampling=Sampling()
        )
        # The prefill makes the first token.
        assert len(list(itertools.islice(steps, 2))) == 2
    assert [each._cache_size() - size for each, size in zip(jitted, before, strict=True)] == [count] * 2


@pytest.mark.parametrize("context", [64, 500, 512, 1000, 2048])
@pytest.mark.parametrize("new", [1, 12, 60, 480])
def test_slots_hold_every_prompt_of_a_padded_length_and_never_exceed_the_context(new: int, context: int):
    for length in range(1, context - new + 1):
        padded = padded_slots(length)
        slots = slots_of(length, new, context)
        assert slots == slots_of(padded, new, context)
        assert max(padded, length + new) <= slots <= max(padded, padded_slots(context))


def test_parameters_may_be_numpy_arrays(base: LetterModel, adapter: Adapter, greedy):
    on_host = base._replace(params=jax.device_get(base.params))
    assert sample(on_host, adapter, PROMPTS, max_new_tokens=NEW) == greedy


def test_a_program_per_token_gives_the_same_text(base, adapter, greedy, monkeypatch: pytest.MonkeyPatch):
    assert [engine.tokens_per_program(platform, 5) for platform in ("gpu", "tpu", "cpu")] == [1, 5, 5]
    monkeypatch.setattr(engine, "tokens_per_program", lambda platform, count: 1)
    assert sample(base, adapter, PROMPTS, max_new_tokens=NEW) == greedy


def test_the_adapter_is_used(base: LetterModel, adapter, greedy):
    assert sample(base, with_strength(adapter, 0.0), PROMPTS, max_new_tokens=NEW) != greedy


def test_draws_depend_on_seed_and_row_and_not_on_the_neighbours(base: LetterModel, adapter: Adapter):
    def draw(prompts: list[str], seed: int) -> list[str]:
        return sample(base, adapter, prompts, max_new_tokens=NEW, temperature=1.0, seed=seed)

    texts = draw(PROMPTS, 0)
    assert draw(PROMPTS, 0) == texts
    assert draw(PROMPTS, 1) != texts
    assert draw(["a longer prompt", PROMPTS[1], "y"], 0)[1] == texts[1]
    assert len(set(draw(["same"] * 3, 0))) == 3


def test_every_option_reaches_the_choice(base: LetterModel, monkeypatch: pytest.MonkeyPatch):
    given = {}
    monkeypatch.setattr(sampler, "continue_ids", lambda *_, **options: given.update(options) or iter([]))
    sample(base, None, PROMPTS, max_new_tokens=5, temperature=0.7, top_k=3, top_p=0.8, seed=11)
    assert given["sampling"] == Sampling(temperature=0.7, top_k=3, top_p=0.8)
    assert (given["max_new_tokens"], given["seed"]) == (5, 11)


@pytest.mark.parametrize("stream", [False, True])
def test_more_prompts_than_rows_wait_and_get_the_same_tokens(stream: bool, base: LetterModel, adapter, monkeypatch):
    prompts = [text * (1 + i % 2) for i, text in enumerate([*PROMPTS, "b", "a dog!"])]
    options = {"max_new_tokens": NEW, "temperature": 1.0}
    stop = sample(base, adapter, prompts[:1], **options)[0][5]
    stopping = base._replace(tokenizer=Letters(stop_ids=frozenset([ALPHABET.index(stop)])))
    together = sample(stopping, adapter, prompts, **options)
    assert len({len(text) for text in together}) > 1
    running, real, steps = [], engine.Engine.turn, []

    def turn(self):
        made = real(self)
        running.append(self.num_running + self.num_waiting)
        assert self.options.rows == 2
        return made

    monkeypatch.setattr(sampler, "MOST_ROWS", 2)
    monkeypatch.setattr(engine.Engine, "turn", turn)
    assert sample(stopping, adapter, prompts, **options, on_tokens=steps.append if stream else None) == together
    assert max(running) > 2
    if stream:
        rows = list(zip(*steps, strict=True))
        assert [Letters().decode([token for token in row if token is not None]) for row in rows] == together
        assert len(steps) == max(map(len, together))


def test_stop_tokens_end_their_row_alone_and_are_not_in_the_text(base: LetterModel, adapter, greedy):
    stop = greedy[0][5]
    stopping = base._replace(tokenizer=Letters(stop_ids=frozenset([ALPHABET.index(stop)])))
    texts = sample(stopping, adapter, PROMPTS, max_new_tokens=NEW)
    assert texts == [text.partition(stop)[0] for text in greedy]
    assert texts != greedy
    assert any(stop not in text for text in greedy), "some row must outlive the first"


def test_streaming_gives_the_same_text_a_token_at_a_time(base: LetterModel, adapter, greedy):
    stop = greedy[0][5]
    stopping = base._replace(tokenizer=Letters(stop_ids=frozenset([ALPHABET.index(stop)])))
    steps: list[list[int | None]] = []
    texts = sample(stopping, adapter, PROMPTS, max_new_tokens=NEW, on_tokens=steps.append)
    assert texts == [text.partition(stop)[0] for text in greedy]
    assert len(steps) == max(map(len, texts))
    for row, text in enumerate(texts):
        streamed = [step[row] for step in steps]
        assert streamed == [*Letters().encode(text), *[None] * (len(steps) - len(text))]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": ["a", ""]}, "prompt 1 is empty"),
        ({"prompts": "a dog"}, "prompts is one string"),
        ({"prompts": ["a" * 60], "max_new_tokens": 5}, "60 tokens and 5 new ones do not fit the model's context of 64"),
        ({"max_new_tokens": 0}, "0 new ones"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "seed is 4294967296"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused(changes: dict, sentence: str, base: LetterModel):
    with pytest.raises(InputError) as caught:
        sample(base, None, **{"prompts": PROMPTS, **changes})
    assert sentence in str(caught.value)


@pytest.mark.parametrize("token", [40, -1])
def test_a_token_that_the_model_has_not_is_refused(token: int, base: LetterModel):
    with pytest.raises(InputError, match=rf"prompt 1 has the token {token}, but the base has embeddings of 40 tokens"):
        next(
            sampler.continue_ids(
                base.params, None, [[1], [1, token]], config=base.config, max_new_tokens=2, sampling=Sampling(),
            )
        )  # fmt: skip


def test_without_a_tokenizer_it_says_so(base: LetterModel):
    with pytest.raises(InputError, match="no tokenizer"):
        sample(base._replace(tokenizer=None), None, PROMPTS)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder `shared` is not beside the repository")
def test_a_real_model_tells_the_story_that_its_author_published():
    folder = SHARED / "data" / "models" / "stories260K"
    story = "Once upon a time" + (folder / "stories260K.md").read_text().split("\nOnce upon a time")[1]
    text = sample(load_base(folder / "hf"), None, ["Once upon a time"], max_new_tokens=200)[0]
    assert len(text) > 300
    assert story.startswith("Once upon a time" + text)
