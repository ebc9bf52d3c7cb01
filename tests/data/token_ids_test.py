"""Token ids without an embedding in the base: every path from text to ids refuses them."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from rich.console import Console

from aligner_jax.analysis import about_base
from aligner_jax.analysis.about_base import Looking
from aligner_jax.analysis.named import Named
from aligner_jax.data.documents import tokenize_examples
from aligner_jax.data.pairs import tokenize_pairs
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.sources.example import Example, Instruction, Preference
from aligner_jax.data.token_ids import check_ids
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.sampler import continue_ids, sample
from aligner_jax.errors import InputError
from aligner_jax.evals import gsm8k, mmlu_generated, vicuna
from aligner_jax.evals.generating import Prompt, generate
from aligner_jax.evals.harness_model import harness_model
from aligner_jax.evals.interface import Run, parse_evaluate_config
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.scoring import Continuation, score
from aligner_jax.evals.subject import Subject
from aligner_jax.peft import init_adapter

QUIET = Console(quiet=True)
MARK = "<|extra|>"


class Grown:
    """A vocabulary with an added token, like one that was given chat markers after the base was trained."""

    def __init__(self, backend) -> None:
        self._backend, self._extra = backend, backend.vocab_size
        self.vocab_size, self.special_ids = backend.vocab_size + 1, backend.special_ids | {backend.vocab_size}

    def token_id(self, token: str) -> int | None:
        return self._extra if token == MARK else self._backend.token_id(token)

    def token(self, token_id: int) -> str:
        return MARK if token_id == self._extra else self._backend.token(token_id)

    def encode(self, text: str, after: int | None) -> list[int]:
        first, *rest = [self._backend.encode(part, None) for part in text.split(MARK)]
        return [*first, *(i for part in rest for i in (self._extra, *part))]

    def decode(self, ids) -> str:
        return self._backend.decode(ids)


@pytest.fixture
def grown(tiny_subject: Callable[..., Subject]) -> Subject:
    subject = tiny_subject()
    tokenizer = subject.tokenizer
    template = tokenizer.chat_template.replace("<|im_start|>", MARK)
    more = dataclasses.replace(tokenizer, backend=Grown(tokenizer.backend), chat_template=template, num_embeddings=None)
    return dataclasses.replace(subject, base=subject.base.replace(tokenizer=more))


def evaluation(module, options: Callable[[str], object], file: str, content: str):
    def run(subject: Subject, folder: Path) -> None:
        (folder / file).write_text(content)
        config = parse_evaluate_config({"evaluation": {"name": "harness"}})
        module.evaluate(Run(config, subject, folder, Console(file=io.StringIO()), {}), options(str(folder / file)))

    return run


def harness(ask):
    def run(subject: Subject, folder: Path) -> None:
        ask(harness_model(subject, ResultStore(folder / "store", {}), QUIET))

    return run


def requests(*arguments):
    return [SimpleNamespace(args=arguments)]


def tokenizer_of(subject: Subject) -> Tokenizer:
    return subject.tokenizer


def preference() -> Example:
    return Example(Preference(({"role": "user", "content": "Why?"},), "So.", "No."), "data.json:1")


LOOKING = Looking(PromptFormat("chat"))
INSTRUCTION = Example(Instruction("Why?", "", "So."), "data.json:1")
QUESTION = f"Why {MARK}?"
WAYS = {
    "sample": lambda s, _: sample(s.base, None, ["Hi", QUESTION], max_new_tokens=2),
    "documents": lambda s, _: tokenize_examples([INSTRUCTION], tokenizer_of(s), "chat", sequence_length=64),
    "pairs": lambda s, _: tokenize_pairs(
        [preference()], tokenizer_of(s), "chat", sequence_length=64, packing=False, overlong="error"
    ),
    "analysis of default prompts": lambda s, _: about_base.sections(s.base, [], None, LOOKING),
    "analysis of answers": lambda s, _: about_base.sections(s.base, [], [INSTRUCTION] * 4, LOOKING),
    "log-likelihood": harness(lambda model: model.loglikelihood(requests(QUESTION, " So"))),
    "log-likelihood of it": harness(lambda model: model.loglikelihood(requests("Why", QUESTION))),
    "rolling": harness(lambda model: model.loglikelihood_rolling(requests(QUESTION))),
    "harness's generation": harness(lambda model: model.generate_until(requests(QUESTION, {"until": []}))),
    "gsm8k": evaluation(
        gsm8k, lambda path: gsm8k.Gsm8kOptions(path=path, protocol="template", template="chat", max_new_tokens=2),
        "test.jsonl", json.dumps({"question": "1?", "answer": "#### 1"}),
    ),
    "vicuna": evaluation(
        vicuna, lambda path: vicuna.VicunaOptions(path=path, max_new_tokens=2),
        "question.jsonl", json.dumps({"question_id": 1, "turns": [QUESTION]}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_token_beyond_the_embedding_is_refused_by_name(way: str, grown: Subject, tmp_path: Path):
    size = grown.base.config.vocab_size
    sentence = rf"the text has the token {size} \('<\|extra\|>'\), but the base has embeddings of {size} tokens only"
    with pytest.raises(InputError, match=sentence):
        WAYS[way](grown, tmp_path)


def test_questions_of_mmlu_are_texts_too(grown: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    question = mmlu_generated.MultipleChoice("aging", QUESTION, ("a", "b", "c", "d"), 0, "mmlu:1")
    monkeypatch.setattr(mmlu_generated, "read_mmlu", lambda *_: {"aging": [question]})
    run = evaluation(mmlu_generated, lambda path: mmlu_generated.MmluGeneratedOptions(path=path), "mmlu", "")
    with pytest.raises(InputError, match="the text has the token"):
        run(grown, tmp_path)


@pytest.mark.parametrize("strange", [-1, 10**6])
def test_ids_from_elsewhere_are_checked_where_they_come_in(strange: int, tiny_subject, tmp_path: Path):
    subject = tiny_subject()
    params, config, store = subject.base.params, subject.base.config, ResultStore(tmp_path / "store", {})
    for enter in (
        lambda: score(subject, [Continuation((1, strange, 2), 1)], store, QUIET),
        lambda: score(subject, [Continuation((1, 2, strange), 1)], store, QUIET),
        lambda: generate(subject, [Prompt((1, strange), 2)], store, QUIET),
        lambda: next(continue_ids(params, None, [[1, strange]], config=config, max_new_tokens=1, sampling=Sampling())),
    ):
        with pytest.raises(InputError, match=f"has the token {strange}"):
            enter()


def test_a_tokenizer_with_more_tokens_serves_while_none_is_used(grown: Subject, tiny_subject, tmp_path: Path):
    assert sample(grown.base, None, ["Why?"], max_new_tokens=3) == sample(
        tiny_subject().base, None, ["Why?"], max_new_tokens=3
    )
    # A stop text is not an input of the model.
    wanted = {"until": [MARK], "max_gen_toks": 3}
    assert harness_model(grown, ResultStore(tmp_path / "store", {}), QUIET).generate_until(requests("Why?", wanted))
    check_ids([], 1)
    check_ids([0, 4], 5)


def test_numbers_that_overflow_are_refused_before_they_are_drawn(tiny_subject):
    base = tiny_subject().base
    adapter = init_adapter("aligner", base.config, num_tokens=1)
    huge = adapter.replace(trainable={name: jnp.full_like(x, 1e20) for name, x in adapter.trainable.items()})
    with pytest.raises(
        InputError, match=r"^huge: hidden states that are not finite; numbers of the adapter are too large"
    ):
        about_base.sections(base, [Named("huge", Path("a.safetensors"), huge)], None, LOOKING)
