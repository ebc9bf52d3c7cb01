"""lm-evaluation-harness with the project's model class: tasks from local files, run as for any model."""

import csv
import dataclasses
import importlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals import generating, harness, scoring
from aligner_jax.evals.harness import HarnessOptions, evaluate, load_tasks
from aligner_jax.evals.harness_model import harness_model
from aligner_jax.evals.harness_tasks import write_gsm8k, write_mmlu
from aligner_jax.evals.interface import Run, parse_evaluate_config
from aligner_jax.evals.result_store import ResultStore
from aligner_jax.evals.subject import Subject
from aligner_jax.evals.task_files import damaged_files
from aligner_jax.peft import apply

QUIET = Console(quiet=True)
apply_jit = jax.jit(apply, static_argnames=("config",))
SUBJECTS = {"human_aging": 3, "virology": 2}


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mmlu")
    for subject, count in SUBJECTS.items():
        for split in ("dev", "test"):
            (folder / split).mkdir(exist_ok=True)
            with (folder / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                rows = range(count + (split == "dev"))
                csv.writer(file).writerows([f"{subject}, {split} {i}?", "a", "b", "c", "d", "ABCD"[i]] for i in rows)
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own folder of tasks: one rolling, one generating."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Ice floats on water.", "It is " * 400)))
    files = f"{{data_files: {{test: {data}}}, cache_dir: {folder / 'arrow'}}}"
    head = f"dataset_path: json\ndataset_kwargs: {files}\ntest_split: test\nnum_fewshot: 0\n"
    (folder / "rolling.yaml").write_text(
        head + "task: own_rolling\noutput_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
        "metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]\n"
    )
    (folder / "generating.yaml").write_text(
        head + "task: own_generating\noutput_type: generate_until\ndoc_to_text: '{{text[:20]}}'\ndoc_to_target: 'x'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 8, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return folder


@pytest.fixture
def model(tiny_subject: Callable[..., Subject], tmp_path: Path):
    return harness_model(tiny_subject(), ResultStore(tmp_path / "store.jsonl", {}), QUIET)


class Request:
    def __init__(self, *args):
        self.args = args


def _run(subject: Subject, folder: Path, options: HarnessOptions, **fields: int):
    config = parse_evaluate_config({"evaluation": {"name": "harness"}, **fields})
    return evaluate(Run(config, subject, folder, Console(file=io.StringIO()), {}), options)


def test_tasks_of_every_kind_run_from_local_files_and_go_on_where_they_were(
    mmlu: Path, own: Path, tiny_subject, tmp_path: Path, monkeypatch
):
    options = HarnessOptions(tasks=("mmlu", "own_*"), mmlu=str(mmlu), include=str(own), num_fewshot=1)
    outcome = _run(tiny_subject(), tmp_path, options)
    tasks = outcome.scores["tasks"]
    assert set(tasks) == {"mmlu", "mmlu_human_aging", "mmlu_virology", "own_generating", "own_rolling"}
    documents = [json.loads(line) for line in (tmp_path / "documents.jsonl").read_text().splitlines()]
    right = [each["acc"] for each in documents if each["task"].startswith("mmlu")]
    assert len(right) == 5
    assert tasks["mmlu"]["acc"] == pytest.approx(sum(right) / 5)
    assert outcome.scores["documents"]["mmlu_virology"] == 2
    assert 0 < tasks["own_rolling"]["bits_per_byte"] < 100
    (generated,) = {len(each["responses"]) for each in documents if each["task"] == "own_generating"}
    assert generated == 1
    for module, name in ((scoring, "_scored"), (generating, "_generate")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("what was finished is computed again"))
    assert _run(tiny_subject(), tmp_path, options).scores == outcome.scores


def test_what_a_group_has_is_asked_once_and_examples_are_of_the_other_split(mmlu: Path, tmp_path: Path):
    written = []
    for names in (("mmlu*",), ("mmlu_virology", "mmlu")):
        _, (group,) = load_tasks(HarnessOptions(tasks=names, mmlu=str(mmlu)), tmp_path / "tasks")
        assert group.name == "mmlu"
        written.append({path: path.stat().st_mtime_ns for path in (tmp_path / "tasks").glob("*.*")})
    # The harness reads a newer file again into its cache.
    assert written[0] == written[1]
    tasks = {task.task_name: task for task in group.get_all_tasks()}
    assert set(tasks) == {f"mmlu_{subject}" for subject in SUBJECTS}
    for subject, count in SUBJECTS.items():
        task = tasks[f"mmlu_{subject}"]
        asked = [document["question"] for document in task.eval_docs]
        assert asked == [f"{subject}, test {i}?" for i in range(count)]
        examples = [document["question"] for document in task.fewshot_docs()]
        assert examples == [f"{subject}, dev {i}?" for i in range(count + 1)]
        assert f"(with answers) about {subject.replace('_', ' ')}.\n\n" in task.config.description
    # Without their group, its members are tasks of their own.
    _, alone = load_tasks(HarnessOptions(tasks=("mmlu_*",), mmlu=str(mmlu)), tmp_path / "tasks")
    assert [task.task_name for task in alone] == list(tasks)


def test_a_tag_and_a_section_of_a_group_have_members_too():
    kinds = importlib.import_module("lm_eval.tasks._index")
    index = {
        name: kinds.Entry(name, kind, None, cfg, tags)
        for name, kind, cfg, tags in (
            ("tag", kinds.Kind.TAG, None, {"a", "b"}), ("a", kinds.Kind.TASK, {"task": "a"}, {"tag"}),
            ("b", kinds.Kind.TASK, {"task": "b"}, {"tag"}), ("c", kinds.Kind.TASK, {"task": "c"}, set()),
            ("inner", kinds.Kind.GROUP, {"group": "inner", "task": "tag"}, set()),
            ("outer", kinds.Kind.GROUP, {"group": "outer", "task": [{"group": "inner"}, {"task": "own"}]}, set()),
        )
    }  # fmt: skip
    manager = SimpleNamespace(task_index=index)
    assert harness._without_members(list(index), manager) == ["c", "outer"]
    assert harness._without_members(["tag", "b", "c"], manager) == ["tag", "c"]
    assert harness._without_members(["a", "b"], manager) == ["a", "b"]


def test_gsm8k_is_asked_with_examples_of_the_training_split(tiny_subject, tmp_path: Path, monkeypatch):
    subject, tokenizer = tiny_subject(), tiny_subject().tokenizer
    (tmp_path / "data").mkdir()
    for split, answers in (("train", range(6)), ("test", ("1,200", 7, 8))):
        lines = [{"question": f"{split}{i}?", "answer": f"So\n#### {answer}"} for i, answer in enumerate(answers)]
        (tmp_path / "data" / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    given: dict = {}

    def answer(subject, prompts, store, console, *, seed):
        given.update(prompts=prompts, seed=seed, texts=[tokenizer.decode(prompt.ids) for prompt in prompts])
        return [" It is\n#### 1200", " 9, or 7"]

    monkeypatch.setattr("aligner_jax.evals.harness_model.generate", answer)
    options = HarnessOptions(tasks=("gsm8k",), gsm8k=str(tmp_path / "data"))
    outcome = _run(subject, tmp_path / "out", options, limit=2, seed=3)
    metrics = outcome.scores["tasks"]["gsm8k"]
    assert (metrics["exact_match,strict-match"], metrics["exact_match,flexible-extract"]) == (0.5, 1.0)
    assert outcome.scores["documents"] == {"gsm8k": 2}
    assert given["seed"] == 3
    examples, _, question = given["texts"][1].rpartition("\n\n")
    assert question == "Question: test1?\nAnswer:"
    assert len(re.findall(r"Question: train\d\?\nAnswer: So\n#### \d", examples)) == 5
    assert given["prompts"][0][1:] == (256, Sampling(), ("Question:", "</s>", "<|im_end|>"), 0, True)
    options = dataclasses.replace(options, num_fewshot=0, chat_template=True)
    _run(subject, tmp_path / "chat", options, limit=2)
    chat = [{"role": "user", "content": "Question: test0?\nAnswer:"}]
    wanted = tokenizer.render_chat(chat, add_generation_prompt=True)
    assert given["prompts"][0].ids == tuple(tokenizer.encode(wanted))
    (tmp_path / "data" / "test.jsonl").write_text('{"question": "q", "answer": 3}\n')
    with pytest.raises(InputError, match=r"test.jsonl:1: the record has no texts 'question' and 'answer'"):
        write_gsm8k(str(tmp_path / "data"), tmp_path / "tasks")


def test_a_bos_is_added_where_the_tokenizer_adds_one_and_none_is_there(tiny_subject, tmp_path: Path):
    plain = tiny_subject()
    tokenizer = dataclasses.replace(plain.tokenizer, add_bos=True)
    adding = dataclasses.replace(plain, base=plain.base.replace(tokenizer=tokenizer))
    model = harness_model(adding, ResultStore(tmp_path / "store.jsonl", {}), QUIET)
    bos, ids = tokenizer.bos_id, plain.tokenizer.encode("Why?")
    assert model.tok_encode("Why?") == [bos, *ids]
    assert model.tok_encode(tokenizer.backend.token(bos) + "Why?") == [bos, *ids]
    assert model.tok_encode("Why?", add_special_tokens=False) == ids


def test_a_pair_is_encoded_together_and_scored_as_apply_says(model, tiny_subject):
    subject = tiny_subject()
    encode = subject.tokenizer.encode
    # The model's context holds the longest continuation and the token before it.
    longest = "over and " * 400
    while len(encode(longest)) > 512:
        longest = longest[:-1]
    pairs = [
        ("What is ice? ", "Water."), ("Name", " a fruit"), ("", "Ice floats."), ("long " * 600, " end"),
        (" \n", "Ice floats."), ("Now", longest),
    ]  # fmt: skip
    found = model.loglikelihood([Request(*pair) for pair in pairs])
    for (context, continuation), (log_likelihood, _) in zip(pairs, found, strict=True):
        stripped = context.rstrip()
        whole = encode(context + continuation)
        whole = whole if stripped else [subject.tokenizer.bos_id, *whole]
        before = len(encode(stripped)) if stripped else 1
        # The model's context is 512 tokens; the last token is only predicted.
        ids, count = whole[-513:], len(whole) - before
        logits_tv = apply_jit(subject.base.params, None, jnp.asarray([ids[:-1]]), config=subject.base.config)[0]
        log_probs_tv = np.asarray(jax.nn.log_softmax(logits_tv), np.float64)
        wanted = log_probs_tv[np.arange(len(ids) - 1 - count, len(ids) - 1), ids[-count:]].sum()
        assert log_likelihood == pytest.approx(wanted, rel=1e-5)


def test_what_has_no_likelihood_is_one_sentence(model):
    for context in ("Why?", ""):
        with pytest.raises(InputError, match=f"the continuation of '{context[:3]}.* is empty"):
            model.loglikelihood([Request("Why?", "So."), Request(context, "")])
    with pytest.raises(InputError, match=r"of 'Why\?' has \d+ tokens, but should have 1 to 512, the model's context"):
        model.loglikelihood([Request("Why?", "long " * 600)])


def test_a_rolling_likelihood_is_the_sum_over_windows_of_the_context(model, tiny_subject):
    subject = tiny_subject()
    text = "Ice floats on water, and " * 200
    ids = subject.tokenizer.encode(text)
    assert len(ids) > 1024
    (found,) = model.loglikelihood_rolling([Request(text)])
    total, predicted, whole = 0.0, 0, [subject.tokenizer.bos_id, *ids]
    while predicted < len(ids):
        count = min(512, len(ids) - predicted)
        end = predicted + count
        window = whole[max(0, end - 512) : end]
        logits_tv = apply_jit(subject.base.params, None, jnp.asarray([window]), config=subject.base.config)[0]
        log_probs_tv = np.asarray(jax.nn.log_softmax(logits_tv), np.float64)
        total += log_probs_tv[np.arange(len(window) - count, len(window)), ids[predicted:end]].sum()
        predicted = end
    assert found == pytest.approx(total, rel=1e-5)


def test_generation_takes_the_tasks_options(model, tiny_subject):
    whole, cut, sampled, other = model.generate_until(
        [
            Request("Why is the sky blue?", {"until": [], "max_gen_toks": 20}),
            Request("Why is the sky blue?", {"until": "e", "max_new_tokens": 20, "temperature": 0.0}),
            *[
                Request(
                    "Why is the sky blue?",
                    {"until": ["\n\n"], "do_sample": True, "temperature": 20.0, "max_gen_toks": 20},
                )
            ]
            * 2,
        ]
    )
    assert cut == whole.partition("e")[0]
    assert sampled != other
    with pytest.raises(InputError, match="a task generates with 'num_beams'"):
        model.generate_until([Request("Why?", {"num_beams": 2, "until": []})])
    with pytest.raises(InputError, match="a task generates 512 tokens, but the model's context holds 512"):
        model.generate_until([Request("Why?", {"max_gen_toks": 512, "until": []})])


def test_a_prompt_is_what_a_task_asks_for_and_fits(model, tiny_subject, monkeypatch):
    asked: list[generating.Prompt] = []
    monkeypatch.setattr(
        "aligner_jax.evals.harness_model.generate", lambda subject, prompts, *_, **__: asked.extend(prompts) or []
    )
    long = "long " * 600 + "end"
    model.generate_until(
        [
            Request(long, {"until": ["\n", ""], "max_gen_toks": 500, "do_sample": False, "temperature": 0.5}),
            Request("Why?", {"until": [], "do_sample": True, "temperature": 0.5, "top_k": 7, "top_p": 0.9}),
            Request("Why?", {"until": [], "do_sample": True}),
            Request("Why?", {"until": [], "temperature": 0.5, "top_k": 0}),
            Request("Why?", {"until": [], "temperature": 0.0, "top_k": 7}),
            Request("Why?", {"until": [], "temperature": 0.0}),
        ]
    )
    assert asked[0].ids == tuple(tiny_subject().tokenizer.encode(long)[-12:])
    eos = ("<|im_end|>",)
    assert [each[1:] for each in asked] == [
        # EOS's text ends answers, as with hf, and so does an empty one.
        (500, Sampling(), ("\n", "", "<|im_end|>"), 0, True),
        (256, Sampling(0.5, 7, 0.9), eos, 0, True),
        # Transformers' default of 50 if a task names none; 0 is no limit.
        (256, Sampling(1.0, 50), eos, 0, True),
        (256, Sampling(0.5), eos, 0, True),
        # Greedy answers to the same prompt are computed once.
        *[(256, Sampling(), eos, 0, True)] * 2,
    ]


def test_a_chat_template_leaves_a_last_message_open(model):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because "}]
    assert model.apply_chat_template(chat[:1]).endswith("Why?<|im_end|>\n<|im_start|>assistant\n")
    assert model.apply_chat_template(chat, add_generation_prompt=False).endswith("<|im_start|>assistant\nBecause ")


def test_mistakes_in_tasks_are_one_sentence(mmlu: Path, tmp_path: Path, monkeypatch):
    manager = importlib.import_module("lm_eval.tasks").TaskManager
    # The harness's thousands of own tasks take seconds to read.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda **given: manager(**{**given, "include_defaults": False}))
    with pytest.raises(InputError, match=r"has 'mmlu_virolgy', which is no task; did you mean mmlu_virology\?"):
        load_tasks(HarnessOptions(tasks=("mmlu_virolgy",), mmlu=str(mmlu)), tmp_path / "tasks")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: no.jsonl}}\ntest_split: test\n"
        "output_type: loglikelihood\ndoc_to_text: x\ndoc_to_target: y\nmetric_list: [{metric: acc}]\n"
    )
    with pytest.raises(InputError, match=r"the tasks own cannot be loaded: .*no.jsonl"):
        load_tasks(HarnessOptions(tasks=("own",), include=str(tmp_path / "own")), tmp_path / "none")
    for damaged, reason in (("task: [a\n : :", "while parsing a flow"), ("[1, 2]", "it is not a YAML object")):
        (tmp_path / "own" / "damaged.yaml").write_text(damaged)
        with pytest.raises(InputError, match=rf"'mine', which is no task; .*damaged.yaml is passed over: {reason}"):
            load_tasks(HarnessOptions(tasks=("mine",), include=str(tmp_path / "own")), tmp_path / "none")
    with pytest.raises(InputError, match=r"config.evaluation.tasks names no task"):
        load_tasks(HarnessOptions(tasks=()), tmp_path)
    with pytest.raises(InputError, match=r"config.evaluation.include is none, which is no folder"):
        load_tasks(HarnessOptions(tasks=("x",), include="none"), tmp_path)
    (mmlu / "dev" / "virology_dev.csv").rename(tmp_path / "aside")
    try:
        with pytest.raises(InputError, match="questions on virology in the split test, but none in the split dev"):
            write_mmlu(str(mmlu), tmp_path / "tasks")
    finally:
        (tmp_path / "aside").rename(mmlu / "dev" / "virology_dev.csv")


def test_a_bomb_of_aliases_is_refused_before_it_unfolds(tmp_path: Path):
    folds = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 30))
    for bomb in ("a0: &a0 [x]\n" + folds, "task: &t [*t]\n"):
        (tmp_path / "bomb.yaml").write_text(bomb)
        with pytest.raises(
            InputError, match=r"bomb.yaml: its aliases unfold to .* but a task file has at most 1,000,000"
        ):
            load_tasks(HarnessOptions(tasks=("t",), include=str(tmp_path)), tmp_path / "none")
    (tmp_path / "bomb.yaml").write_text("task: t\nx: &x [1, {a: 2}]\ny: [*x, *x]\n")
    (tmp_path / "deep.yaml").write_text("task: " + "[" * 5000 + "]" * 5000)
    assert damaged_files(str(tmp_path)) == [f"{tmp_path / 'deep.yaml'} is passed over: it is nested too deeply"]


def _task(folder: Path, **fields) -> HarnessOptions:
    """Returns options of a task `t` over one record."""
    folder.mkdir()
    (folder / "data.jsonl").write_text('{"q": "Why?", "a": "So."}\n')
    task = {
        "task": "t", "dataset_path": "json", "test_split": "test", "output_type": "generate_until", "num_fewshot": 0,
        "dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}, "cache_dir": str(folder / "arrow")},
        "doc_to_text": "{{q}}", "doc_to_target": "{{a}}", "metric_list": [{"metric": "exact_match"}],
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}, **fields,
    }  # fmt: skip
    (folder / "t.yaml").write_text(json.dumps(task))
    return HarnessOptions(tasks=("t",), include=str(folder))


def test_what_a_task_fails_with_is_one_sentence_and_a_bug_of_ours_is_none(tiny_subject, tmp_path: Path, monkeypatch):
    far = _task(
        tmp_path / "far", output_type="multiple_choice", doc_to_choice=["a", "b"], doc_to_target=7,
        metric_list=[{"metric": "acc"}], generation_kwargs=None,
    )  # fmt: skip
    number = _task(tmp_path / "number", output_type="loglikelihood", doc_to_target=3, metric_list=[{"metric": "acc"}])
    ends = _task(tmp_path / "ends", generation_kwargs={"until": [5], "max_gen_toks": 4})
    for options, sentence in (
        (far, "the tasks t cannot be (loaded|run): "),
        (number, "a task asks for .*, which is no text|the tasks t cannot be"),
        (ends, "a task's generation_kwargs: until is"),
    ):
        with pytest.raises(InputError, match=sentence):
            _run(tiny_subject(), tmp_path / "out", options)
    monkeypatch.setattr("aligner_jax.evals.harness_model.generate", lambda *_, **__: {}["a bug of ours"])
    with pytest.raises(KeyError, match="a bug of ours"):
        _run(tiny_subject(), tmp_path / "bug", _task(tmp_path / "fine"))


def test_log_likelihoods_that_are_not_finite_are_refused(tiny_subject, tmp_path: Path):
    subject = tiny_subject()
    params = subject.base.params
    huge = subject.base.replace(params=params.replace(norm_d=params.norm_d * 3e38))
    model = harness_model(dataclasses.replace(subject, base=huge), ResultStore(tmp_path / "store", {}), QUIET)
    with pytest.raises(InputError, match="gives log-likelihoods that are not finite"):
        model.loglikelihood([Request("Why?", " So")])
