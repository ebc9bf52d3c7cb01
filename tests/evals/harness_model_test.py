"""The harness's model class against its `hf` backend, whose results golden_harness.py wrote for the same models."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from golden_harness_models import (
    CHATS,
    CONTEXTS,
    FOLDERS,
    GOLDENS,
    KINDS_OF_END,
    PAIRS,
    ROLLING,
    TASKS,
    TEMPLATES,
    TEXTS,
    WHOLE,
    write_folder,
    write_task,
)
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.harness_model import harness_model
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.weights.base import load_base

HF = json.loads((GOLDENS / "hf.json").read_text(encoding="utf-8"))


def load(folder: Path, name: str, template: str = "chatml", console: Console | None = None):
    base = load_base(write_folder(folder / f"{name}_{template}", name, template))
    # hf had one row at a time, this class has several: no row depends on another.
    return harness_model(
        Subject(base, None, name, None, 4), ResultStore(folder / "store", {}), console or Console(quiet=True)
    )


def requests(*arguments):
    return [SimpleNamespace(args=each) for each in arguments]


def or_none(make):
    """Returns None where hf fails; it is an error here too."""
    try:
        return make()
    except InputError:
        return None


@pytest.mark.parametrize("name", FOLDERS)
def test_texts_are_scored_as_by_hf(name: str, tmp_path: Path):
    model, golden = load(tmp_path, name), HF["folders"][name]
    for text, wanted in zip(TEXTS, golden["ids"], strict=True):
        assert [model.tok_encode(text, special) for special in (None, False)] == wanted
    for pair, wanted in zip(PAIRS, golden["pairs"], strict=True):
        found = or_none(lambda pair=pair: model.loglikelihood(requests(pair))[0])
        assert (found is None) == (wanted is None)
        assert found is None or found == (pytest.approx(wanted[0], rel=1e-5), wanted[1])
    for text, wanted in zip(ROLLING, golden["rolling"], strict=True):
        assert model.loglikelihood_rolling(requests((text,))) == [pytest.approx(wanted, rel=1e-5)]


@pytest.mark.parametrize("name", ["bpe", "bpe_adds_bos", "sentencepiece"])
def test_answers_are_read_and_ended_as_by_hf(name: str, tmp_path: Path):
    model, golden = load(tmp_path, name), HF["folders"][name]
    assert [model.tok_encode(context) for context in CONTEXTS] == golden["prompts"]
    for number, kind in enumerate(KINDS_OF_END):
        wanted = [answers[number] for answers in golden["answers"]]
        found = or_none(lambda kind=kind: model.generate_until(requests(*[(c, kind) for c in CONTEXTS])))
        assert (found or [None] * len(CONTEXTS)) == wanted


@pytest.mark.parametrize("template", TEMPLATES)
def test_chats_are_written_as_by_hf(template: str, tmp_path: Path):
    model = load(tmp_path, "sentencepiece", template)
    for chat, wanted in zip(CHATS, HF["chats"][template], strict=True):
        found = [
            or_none(lambda c=chat, a=a: model.apply_chat_template(c, add_generation_prompt=a)) for a in (True, False)
        ]
        assert found == wanted, chat


@pytest.mark.parametrize(("name", "template"), WHOLE)
def test_whole_tasks_ask_and_answer_as_with_hf(name: str, template: str, tmp_path: Path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    model = load(tmp_path, name, template)
    for task, (_, arguments) in TASKS.items():
        manager = TaskManager(include_path=str(write_task(tmp_path / "tasks", task)), include_defaults=False)
        found = simple_evaluate(model=model, tasks=[task], task_manager=manager, bootstrap_iters=0, **arguments)
        samples = [[each["arguments"][0][0], each["resps"][0][0]] for each in found["samples"][task]]
        assert samples == HF["tasks"][f"{name} {template}"][task], task


def test_a_system_turn_that_is_left_out_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = load(tmp_path, "sentencepiece", "no_system", Console())
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert model.apply_chat_template(chat) == model.apply_chat_template(chat) == "<s>[INST] Hi [/INST]"
    assert capsys.readouterr().out.count("refuses chats with a system message, which is left out") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"until": [3]}, "a task's generation_kwargs: until is [3], not a list of texts"),
        ({"until": 3}, "until is"),
        ({"max_gen_toks": "many"}, "a task's generation_kwargs cannot be read: invalid literal"),
        ({"max_gen_toks": float("inf")}, "a task's generation_kwargs cannot be read: "),
        ({"max_gen_toks": 0}, "a task generates 0 tokens"),
        ({"max_gen_toks": -1}, "max_gen_toks is -1"),
        ({"do_sample": "no"}, "do_sample is 'no', not true or false"),
        ({"temperature": "0.5"}, "temperature is '0.5', not a number"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": {}}, "cannot be read"),
        ({"do_sample": True, "top_k": 1.5}, "top_k is 1.5"),
        ({"do_sample": True, "top_k": -1}, "top_k is -1"),
        ({"do_sample": True, "top_p": 0}, "top_p is 0"),
        ({"do_sample": True, "top_p": 2.0}, "top_p is 2.0"),
        ({"max_length": 8}, "a task generates with 'max_length', which this model does not have"),
        ([], "a task's generation_kwargs are '[]', and not an object"),
    ],
    ids=str,
)
def test_generation_arguments_of_another_kind_are_one_sentence(arguments, sentence: str, tiny_subject, tmp_path: Path):
    model = harness_model(tiny_subject(), ResultStore(tmp_path / "store", {}), Console(quiet=True))
    with pytest.raises(InputError) as caught:
        model.generate_until(requests(("Why?", arguments)))
    assert sentence in str(caught.value)


def test_what_is_no_text_is_one_sentence(tiny_subject, tmp_path: Path):
    model = harness_model(tiny_subject(), ResultStore(tmp_path / "store", {}), Console(quiet=True))
    for ask in (
        lambda: model.loglikelihood(requests(("Why?", 3))),
        lambda: model.loglikelihood_rolling(requests((None,))),
        lambda: model.generate_until(requests((["Why?"], {"until": []}))),
    ):
        with pytest.raises(InputError, match="which is no text: see its doc_to_text and target"):
            ask()


def test_ids_beyond_the_embedding_are_named(tiny_subject, tmp_path: Path):
    subject = tiny_subject()
    model = harness_model(subject, ResultStore(tmp_path / "store", {}), Console(quiet=True))
    size = subject.base.config.vocab_size
    for ids in ([size], [-1]):
        for context, continuation in (([1], ids), (ids, [1])):
            with pytest.raises(
                InputError, match=rf"the text has the token {ids[0]}.* embeddings of {size} tokens only"
            ):
                model._loglikelihood_tokens([(("a", "b"), context, continuation)])
