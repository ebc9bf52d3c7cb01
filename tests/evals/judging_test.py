"""Answers of a tiny model, judged by the command over HTTP on loopback or by a base, and the configs for that."""

import hashlib
import io
import json
from pathlib import Path

import places
import pytest
from judge_server import Reply, Request, completion, failure, judge_server
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals import judge_base
from aligner_jax.evals.answers import AnswersOptions, read_questions
from aligner_jax.evals.generating import Prompt
from aligner_jax.evals.interface import parse_evaluate_config, parse_options
from aligner_jax.evals.run import evaluate, find_evaluation
from aligner_jax.evals.win_rate import of_counts
from aligner_jax.runtime.command import load_config
from aligner_jax.weights.base import load_base

REPO = places.ROOT
CONFIGS = ("beavertails", "safety", "vicuna_judge", "vicuna_scores")
ARMORM = places.SHARED / "data/eval/vicuna80_responses_armorm.csv"
KEY = "sk-loopback-0123456789"


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_API_KEY", KEY)


def run(name: str, folder: Path, **overrides: object) -> str:
    """Returns the command's output for a config with these overrides, dots written as "__"."""
    given = [(field.replace("__", "."), str(value)) for field, value in overrides.items()]
    config = load_config(REPO / f"configs/eval/{name}.py", given)
    screen = io.StringIO()
    evaluate(parse_evaluate_config(config), None, folder, Console(width=120, file=screen))
    return screen.getvalue()


def scores(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())["scores"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_options_of_every_config_are_some(name: str):
    config = parse_evaluate_config(load_config(REPO / f"configs/eval/{name}.py"))
    parse_options(find_evaluation(config.evaluation.name), config)


def test_answers_are_made_and_judged_by_the_command(tiny_model: Path, tmp_path: Path):
    questions = [
        {"prompt": f"How do locks {'really ' * i}work?", "category": "locks" if i else "keys"} for i in range(3)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    answers, folder = tmp_path / "answers", tmp_path / "safety"
    text = run(
        "beavertails", answers, base__path=tiny_model, base__dtype="float32", batch_size=2,
        evaluation__path=tmp_path / "questions.json", evaluation__template="none", evaluation__max_new_tokens=4,
    )  # fmt: skip
    assert "Answers to be judged" in text
    assert "locks" not in text
    lines = [json.loads(line) for line in (answers / "responses.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["category"]) for line in lines] == [(q["prompt"], q["category"]) for q in questions]

    def refuses_the_last(request: Request, number: int) -> Reply:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        return failure(403, "no credit") if number == 2 else completion("[[safe]]" if number else "[[unsafe]]")

    settings = {
        "evaluation__responses__files": [str(answers / "responses.jsonl")],
        "evaluation__endpoint__model": "m",
        "evaluation__endpoint__concurrency": 1,
        "evaluation__endpoint__requests_per_minute": None,
        "evaluation__endpoint__prompt_price": 10,
        "evaluation__endpoint__completion_price": 0,
    }
    with (
        judge_server(refuses_the_last) as server,
        pytest.raises(InputError, match="no credit; 2 answers of 3 are kept"),
    ):
        run("safety", folder, evaluation__endpoint__url=server.url, **settings)
    assert not (folder / "results.json").exists()
    port = int(server.url.split(":")[2].split("/")[0])
    with judge_server(lambda request, number: completion("?"), port) as server:
        text = run("safety", folder, evaluation__endpoint__url=server.url, **settings)
    assert len(server.requests) == 1
    assert "1 answers asked for, 2 kept from before" in text
    assert "$0.0060, of which $0.0020 now" in text
    (model,) = scores(folder)["models"]
    found = {name: (share["safe"], share["judged"], share["unparsable"]) for name, share in model["categories"].items()}
    assert found == {"keys": (0, 1, 0), "locks": (1, 1, 1)}
    assert scores(folder)["spent"]["prompt_tokens"] == 600
    assert scores(folder)["judge_made_from"] is None
    assert KEY not in "".join(file.read_text() for file in tmp_path.rglob("*.json*"))
    assert "locks really" not in text


def test_what_runs_no_model_takes_no_adapter(tmp_path: Path):
    config = parse_evaluate_config(load_config(REPO / "configs/eval/vicuna_judge.py"))
    with pytest.raises(InputError, match="--adapter is given, but the evaluation 'pairwise' runs no model"):
        evaluate(config, "adapter.safetensors", tmp_path / "out", Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_a_pair_is_judged_by_the_command_up_to_a_limit(tmp_path: Path):
    for model in ("a", "b"):
        lines = [{"model": model, "prompt": f"q{i}", "response": f"says {model}"} for i in range(5)]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def prefers_a(request: Request, number: int) -> Reply:
        return completion("[[A]]" if request.user.index("says a") < request.user.index("says b") else "[[B]]")

    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]
    with judge_server(prefers_a) as server:
        text = run(
            "vicuna_judge", tmp_path / "out", limit=3, evaluation__responses__files=files,
            evaluation__endpoint__url=server.url, evaluation__endpoint__requests_per_minute=6000,
        )  # fmt: skip
    assert len(server.requests) == 6
    assert "judged: 6 of 6" in text
    (pair,) = scores(tmp_path / "out")["pairs"]
    assert (pair["model"], pair["against"], pair["outcomes"]) == ("a", "b", ["win"] * 3)
    assert pair["rate"] == {"wins": 3, "losses": 0, "ties": 0, "unparsable": 0, "rate": 1.0, "interval": [1.0, 1.0]}


@pytest.fixture
def prefers_a(monkeypatch: pytest.MonkeyPatch) -> list[Prompt]:
    """Makes judges in this process prefer the answers of "a", which are safe; returns the prompts that they get."""
    asked: list[Prompt] = []

    def generate(subject, prompts, store, console, *, seed, what):
        asked.extend(prompts)
        texts = [subject.tokenizer.decode(prompt.ids) for prompt in prompts]
        if "assistant A, between" in texts[0]:
            return ["[[A]]" if text.index("says a") < text.index("says b") else "[[B]]" for text in texts]
        return ["[[safe]]" if "says a" in text else "[[unsafe]]" for text in texts]

    monkeypatch.setattr(judge_base, "generate", generate)
    return asked


@pytest.mark.parametrize("name", ["vicuna_judge", "safety"])
def test_a_base_judges_by_the_command(name: str, tiny_model: Path, tmp_path: Path, prefers_a: list[Prompt]):
    for model in ("a", "b"):
        lines = [
            {"model": model, "prompt": f"q{i}", "response": f"says {model}", "category": "locks"} for i in range(5)
        ]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "evaluation__responses__files": [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")],
        "evaluation__judge__base__path": tiny_model, "evaluation__judge__base__dtype": "float32",
        "evaluation__judge__max_tokens": 2,
    }  # fmt: skip
    with pytest.raises(
        InputError, match=r"config\.evaluation\.judge\.base is set, but config\.evaluation\.by is 'endp"
    ):
        run(name, tmp_path / "out", limit=3, **settings)
    text = run(name, tmp_path / "out", limit=3, evaluation__by="base", **settings)
    assert "judged by tiny" in text
    assert f"judge: {tiny_model}; adapter: none" in text
    assert len(prefers_a) == 6
    found = scores(tmp_path / "out")
    assert (found["judge"], found["spent"]) == ("tiny", None)
    no_adapter = hashlib.sha256().hexdigest()
    assert found["judge_made_from"] == {"base": load_base(tiny_model).identity, "adapter": no_adapter}
    if name == "safety":
        assert [model["overall"]["share"] for model in found["models"]] == [1.0, 0.0]
    else:
        assert found["pairs"][0]["outcomes"] == ["win"] * 3


@pytest.mark.skipif(not ARMORM.exists(), reason="the authors' file of responses and scores is not here")
def test_the_authors_responses_by_their_scores_beside_the_paper(tmp_path: Path):
    run("vicuna_scores", tmp_path, evaluation__responses__files=[str(ARMORM)])
    pairs = scores(tmp_path)["pairs"]
    found = [tuple(pair["rate"][kind] for kind in ("wins", "losses", "ties")) for pair in pairs]
    # Counted independently of this code.
    assert found[:2] == [(29, 49, 2), (24, 54, 2)]
    assert all(sum(counts) == 80 for counts in found)
    assert [pair["model"] for pair in pairs] == ["aligner1_7B"] * 2 + ["aligner10_7B"] * 2 + [
        "aligner1_13B", "aligner1_13B", "aligner10_13B", "aligner10_13B"
    ]  # fmt: skip
    assert pairs[5]["published"]["rate"] == of_counts(16, 31, 33).rate == 32.5 / 80


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([{"prompt": "secret"}, {"prompt": "secret"}], r":2: the question is in .*:1 already"),
        ([{"question": "secret"}], r":1: the record has no field 'prompt'"),
        ([{"prompt": "secret", "category": 3}], r":1: the field 'category' holds a number"),
    ],
)
def test_questions_that_cannot_be_asked(tmp_path: Path, records: list, says: str):
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with pytest.raises(InputError, match=says) as caught:
        read_questions(AnswersOptions(path=str(path)))
    assert "secret" not in str(caught.value)
