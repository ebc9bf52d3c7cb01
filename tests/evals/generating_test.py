"""Answers in batches: equal to those of `sample`, stopped correctly, and never computed twice."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.engine import Engine
from aligner_jax.decoding.sampler import continuation, continue_ids, sample
from aligner_jax.errors import InputError
from aligner_jax.evals.generating import Prompt, encoded, generate
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject

QUIET = Console(quiet=True)
TEXTS = ["Why is the sky blue?", "Name a fruit.", "What is ice, and where is there most of it on earth? " * 3]


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "store.jsonl", {})


def test_greedy_answers_are_those_of_sample(tiny_subject: Callable[..., Subject], store: ResultStore):
    subject = tiny_subject(batch_size=2)
    prompts = [Prompt(encoded(subject, text), 12) for text in TEXTS]
    answers = generate(subject, [*prompts, prompts[0]], store, QUIET)
    assert answers[:3] == [sample(subject.base, None, [text], max_new_tokens=12)[0] for text in TEXTS]
    assert answers[3] == answers[0]
    assert len(store) == 3


def test_a_prompt_begins_with_a_bos_where_the_tokenizer_adds_one(tiny_subject: Callable[..., Subject]):
    plain = tiny_subject()
    tokenizer = dataclasses.replace(plain.tokenizer, add_bos=True)
    adding = dataclasses.replace(plain, base=plain.base.replace(tokenizer=tokenizer))
    assert encoded(adding, TEXTS[0]) == (tokenizer.bos_id, *encoded(plain, TEXTS[0]))


def test_an_answer_ends_before_the_first_of_its_stops(tiny_subject: Callable[..., Subject], store: ResultStore):
    subject = tiny_subject(batch_size=2)
    # Greedy answers would repeat themselves.
    prompt = Prompt(encoded(subject, TEXTS[0]), 12, Sampling(20.0))
    (whole,) = generate(subject, [prompt], store, QUIET)
    # Both are among the tokens of one call.
    first, second = whole[1:3], whole[4:6]
    assert whole.index(first) < whole.index(second)
    (cut,) = generate(subject, [prompt._replace(until=(second, first, "never said"))], store, QUIET)
    assert cut == whole[: whole.index(first)]


def test_an_answer_that_ends_early_cuts_no_other_of_its_batch(tiny_subject: Callable[..., Subject], store: ResultStore):
    subject = tiny_subject(batch_size=2)
    prompts = [Prompt(encoded(subject, text), 24, Sampling(20.0)) for text in TEXTS[:2]]
    short, long = generate(subject, prompts, store, QUIET)
    end = next(character for character in short[:8] if character not in long)
    answers = generate(subject, [each._replace(until=(end,)) for each in prompts], store, QUIET)
    assert answers == [short.partition(end)[0], long]


def test_sampled_answers_differ_by_number_and_seed_and_are_the_same_again(
    tiny_subject, store: ResultStore, tmp_path: Path
):
    subject = tiny_subject(batch_size=2)
    ids = encoded(subject, TEXTS[0])
    prompts = [Prompt(ids, 12, Sampling(20.0), number=number) for number in range(6)]
    answers = generate(subject, prompts, store, QUIET, seed=1)
    assert len(set(answers)) == 6
    assert generate(subject, prompts, ResultStore(tmp_path / "again.jsonl", {}), QUIET, seed=1) == answers
    assert not set(generate(subject, prompts, ResultStore(tmp_path / "other.jsonl", {}), QUIET, seed=2)) & set(answers)


def interrupt_after(monkeypatch: pytest.MonkeyPatch, store: ResultStore, stored: int) -> list[int]:
    """Makes engines raise KeyboardInterrupt when so many answers are stored; returns the requests that they get."""
    requests: list[int] = []
    add, turn = Engine.add, Engine.turn

    def counted(self, request):
        requests.append(request.draw)
        return add(self, request)

    def interrupted(self):
        if len(store) == stored:
            raise KeyboardInterrupt
        return turn(self)

    monkeypatch.setattr(Engine, "add", counted)
    monkeypatch.setattr(Engine, "turn", interrupted)
    return requests


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.0), Sampling(1.5, repetition_penalty=1.3)], ids=str)
def test_an_interrupted_run_keeps_what_it_stored_and_a_resumed_one_is_that_of_one_that_was_not(
    sampling: Sampling, tiny_subject, store: ResultStore, tmp_path: Path, monkeypatch
):
    subject = tiny_subject(batch_size=2)
    prompts = [Prompt(encoded(subject, TEXTS[n % 3]), 12, sampling, number=n) for n in range(5)]
    whole = generate(subject, prompts, ResultStore(tmp_path / "whole.jsonl", {}), QUIET)
    with monkeypatch.context() as patch:
        requests = interrupt_after(patch, store, 2)
        with pytest.raises(KeyboardInterrupt):
            generate(subject, prompts, store, QUIET)
    assert sorted(requests) == [0, 1, 2, 3, 4]
    kept = ResultStore(tmp_path / "store.jsonl", {})
    assert len(kept) == 2
    with monkeypatch.context() as patch:
        requests = interrupt_after(patch, kept, -1)
        assert generate(subject, prompts, kept, QUIET) == whole
        # The others are not generated again, and those that are have the draws that they had.
        assert len(requests) == 3
        assert {prompts[i].key for i in requests}.isdisjoint(each.key for each in prompts if each.key in store)
        assert generate(subject, prompts, kept, QUIET) == whole
        assert len(requests) == 3


def test_a_batch_of_which_a_part_is_kept_is_finished(tiny_subject: Callable[..., Subject], store: ResultStore):
    subject = tiny_subject(batch_size=2)
    prompts = [Prompt(encoded(subject, text), 12) for text in TEXTS[:2]]
    answers = [generate(subject, prompts[:1], store, QUIET)[0], *generate(subject, prompts, store, QUIET)]
    assert answers == [sample(subject.base, None, [TEXTS[i]], max_new_tokens=12)[0] for i in (0, 0, 1)]


def test_every_part_of_a_prompt_is_in_its_key():
    prompt = Prompt((1, 2), 12, Sampling(0.5, 7, 0.9), ("#",), 1)
    others = [
        prompt._replace(ids=(2, 1)), prompt._replace(max_new_tokens=13), prompt._replace(until=("##",)),
        prompt._replace(sampling=Sampling(0.6, 7, 0.9)), prompt._replace(sampling=Sampling(0.5, 8, 0.9)),
        prompt._replace(sampling=Sampling(0.5, 7, 0.8)), prompt._replace(number=2),
    ]  # fmt: skip
    assert len({each.key for each in (prompt, *others)}) == 8
    assert prompt.key == Prompt((1, 2), 12, Sampling(0.5, 7, 0.9), ("#",), 1).key


def test_two_batches_of_a_prompt_do_not_draw_alike(tiny_subject, store: ResultStore):
    subject = tiny_subject(batch_size=2)
    prompts = [Prompt(encoded(subject, TEXTS[0]), 12, Sampling(20.0), number=number) for number in (0, 1, 2, 3)]
    assert len(set(generate(subject, prompts, store, QUIET))) == 4


def test_what_just_fits_the_context_is_continued_to_its_end(tiny_subject: Callable[..., Subject], store: ResultStore):
    subject = tiny_subject(batch_size=1)
    ids = encoded(subject, "Ice floats. " * 200)[: 512 - 3]
    steps = continue_ids(
        subject.base.params, None, [ids], config=subject.base.config, max_new_tokens=3, sampling=Sampling(),
        stop_ids=subject.tokenizer.stop_ids,
    )  # fmt: skip
    new = [token for (token,) in steps if token is not None]
    assert generate(subject, [Prompt(ids, 3)], store, QUIET) == [continuation(subject.tokenizer, ids, new)]
    with pytest.raises(InputError, match="prompt 1 has 509 tokens, which with 4 new ones do not fit"):
        generate(subject, [Prompt(ids, 4)], store, QUIET)


def test_what_does_not_fit_the_context_is_refused_by_its_beginning(
    tiny_subject: Callable[..., Subject], store: ResultStore
):
    subject = tiny_subject()
    ids = encoded(subject, "Ice floats. " * 200)
    with pytest.raises(
        InputError, match=r"^prompt 2 has \d+ tokens, which with 8 new ones do not fit the model's context of 512$"
    ):
        generate(subject, [Prompt(ids[:9], 8), Prompt(ids, 8)], store, QUIET)
    with pytest.raises(InputError, match="prompt 1 is empty"):
        generate(subject, [Prompt((), 8)], store, QUIET)
