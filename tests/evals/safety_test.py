"""Safety by category, judged over HTTP on loopback and by scores."""

import json
from pathlib import Path

import pytest
from judge_server import Reply, Request, completion, judge_server, run_in
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.interval import wilson_interval
from aligner_jax.evals.judge_endpoint import EndpointConfig
from aligner_jax.evals.judge_prompts import SAFETY
from aligner_jax.evals.response_files import ResponsesConfig
from aligner_jax.evals.safety import SafetyOptions, safe_share, safety, table_of


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def config(tmp_path: Path) -> SafetyOptions:
    """Six questions in two categories; responses to the even ones are fine."""
    questions = [{"prompt": f"q{i}", "category": "locks" if i < 4 else "lies"} for i in range(6)]
    responses = [
        {"model": "m", "prompt": f"q{i}", "response": "no" if i % 2 else "fine", "is_safe": i % 2 == 0}
        for i in range(6)
    ]
    (tmp_path / "questions.json").write_text(json.dumps(questions))
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in responses))
    return SafetyOptions(
        responses=ResponsesConfig(files=(str(tmp_path / "m.jsonl"),)), questions=str(tmp_path / "questions.json")
    )


def judge(request: Request, number: int) -> Reply:
    if "q0" in request.user:
        return completion("I cannot judge this.")
    return completion("[[safe]]" if "fine" in request.user else "[[unsafe]]")


def test_an_endpoint_judges_by_category(config: SafetyOptions, tmp_path: Path):
    with judge_server(judge) as server:
        endpoint = EndpointConfig(url=server.url, model="guard", key_variable=None)
        asked = SafetyOptions(responses=config.responses, questions=config.questions, endpoint=endpoint)
        result = safety(asked, run_in(tmp_path))
    assert {request.user for request in server.requests} == {
        SAFETY.fill(question=f"q{i}", answer="no" if i % 2 else "fine") for i in range(6)
    }
    assert server.requests[0].body["messages"][0] == {"role": "system", "content": SAFETY.system}
    (model,) = result.models
    assert list(model.categories) == ["locks", "lies"]
    locks, lies = model.categories.values()
    assert (locks.safe, locks.judged, locks.unparsable) == (1, 3, 1)
    assert (lies.safe, lies.judged, lies.unparsable) == (1, 2, 0)
    assert (model.overall.safe, model.overall.judged, model.overall.share) == (2, 5, 0.4)
    assert model.overall.interval == wilson_interval(2, 5)
    assert result.spent is not None
    assert result.spent.asked == 6
    console = Console(record=True, width=120)
    console.print(table_of(result))
    shown = console.export_text()
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.splitlines() if line[0] == "│"]
    assert rows[0] == ["m", "locks", "1", "3", "1", "33%", "6% to 79%"]
    assert rows[-1] == ["m", "all", "2", "5", "1", "40%", "12% to 77%"]
    assert "judged by guard" in shown


def test_a_column_judges(config: SafetyOptions, tmp_path: Path):
    scored = SafetyOptions(responses=config.responses, questions=config.questions, by="scores")
    (model,) = safety(scored, run_in(tmp_path)).models
    assert {name: (share.safe, share.judged) for name, share in model.categories.items()} == {
        "locks": (2, 4),
        "lies": (1, 2),
    }
    (model,) = safety(scored, run_in(tmp_path, limit=5)).models
    assert {name: share.judged for name, share in model.categories.items()} == {"locks": 4, "lies": 1}


def test_the_responses_may_name_the_category_themselves(tmp_path: Path):
    (tmp_path / "m.csv").write_text("model,prompt,response,harm,p_safe\nm,a,x,lies,0.5\nm,b,x,lies,0.49\n")
    responses = ResponsesConfig(files=(str(tmp_path / "m.csv"),))
    config = SafetyOptions(responses=responses, category_field="harm", by="scores", score_field="p_safe")
    (model,) = safety(config, run_in(tmp_path)).models
    assert (model.categories["lies"].safe, model.categories["lies"].judged) == (1, 2)


def test_no_verdict_is_neither_safe_nor_unsafe():
    share = safe_share([None, None])
    assert (share.safe, share.judged, share.unparsable, share.share, share.interval) == (0, 0, 2, None, None)


@pytest.mark.parametrize(
    ("questions", "says"),
    [
        ([{"prompt": f"q{i}", "category": "c"} for i in range(7)], r"questions\.json:7: the question has no response"),
        ([{"prompt": f"q{i}", "category": "c"} for i in range(5)], r"m\.jsonl:6: the question is not in "),
        ([{"prompt": "q0", "category": "c"}] * 2, r"questions\.json:2: the question is in .*questions\.json:1 already"),
        ([{"prompt": "q0"}], r"questions\.json:1: there is no field 'category'"),
        ([{"prompt": "q0", "category": " "}], r"questions\.json:1: the field 'category' holds nothing, not a name"),
        ([{"category": "c"}], r"questions\.json:1: the record has no field 'prompt'"),
    ],
)
def test_questions_that_do_not_fit(config: SafetyOptions, tmp_path: Path, questions: list, says: str):
    (tmp_path / "questions.json").write_text("".join(json.dumps(question) + "\n" for question in questions))
    with pytest.raises(InputError, match=says):
        safety(config, run_in(tmp_path))
