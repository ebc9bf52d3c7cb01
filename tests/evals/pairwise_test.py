"""Pairs of models, judged over HTTP on loopback and by scores."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from judge_server import Reply, Request, completion, judge_server, run_in
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals import pairwise as pairwise_module
from aligner_jax.evals import safety
from aligner_jax.evals.interface import Run, parse_evaluate_config
from aligner_jax.evals.judge_endpoint import EndpointConfig
from aligner_jax.evals.judging import Judged
from aligner_jax.evals.pairwise import PairwiseOptions, ScoresConfig, evaluate, pairwise, table_of
from aligner_jax.evals.response_files import ResponsesConfig
from aligner_jax.evals.win_rate import of_counts, win_rate
from aligner_jax.runtime.fields import parse_section


def cells(console: Console) -> list[list[str]]:
    """Returns the cells of the printed table, by row."""
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def responses(tmp_path: Path) -> ResponsesConfig:
    """Responses of two models; "mine" is good at 0 and 1, "theirs" at 2, neither at 3."""
    for model, good in (("mine", (0, 1)), ("theirs", (2,))):
        lines = [
            {"model": model, "prompt": f"q{i}", "response": "good" if i in good else "bad", "score": i in good}
            for i in range(4)
        ]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ResponsesConfig(files=(str(tmp_path / "mine.jsonl"), str(tmp_path / "theirs.jsonl")))


def judged(reply, responses: ResponsesConfig, tmp_path: Path, **fields):
    with judge_server(reply) as server:
        endpoint = EndpointConfig(url=server.url, model="m", key_variable=None)
        config = PairwiseOptions(responses=responses, endpoint=endpoint, **fields)
        return pairwise(config, run_in(tmp_path))


def fair(request: Request, number: int) -> Reply:
    good, bad = request.user.find("good"), request.user.find("bad")
    return completion("[[C]]" if good < 0 else "[[A]]" if good < bad else "[[B]]")


def test_a_fair_judge(responses: ResponsesConfig, tmp_path: Path):
    result = judged(fair, responses, tmp_path)
    (pair,) = result.pairs
    assert (pair.model, pair.against) == ("mine", "theirs")
    assert pair.outcomes == ["win", "win", "loss", "tie"]
    assert pair.rate.rate == pytest.approx(2.5 / 4)
    assert pair.changed_with_order == 0
    (pair,) = judged(fair, responses, tmp_path, pairs=(("theirs", "mine"),)).pairs
    assert pair.outcomes == ["loss", "loss", "win", "tie"]


def test_a_judge_who_always_prefers_what_comes_first(responses: ResponsesConfig, tmp_path: Path):
    (pair,) = judged(lambda request, number: completion("[[A]]"), responses, tmp_path).pairs
    assert pair.outcomes == ["tie"] * 4
    assert (pair.rate.rate, pair.changed_with_order) == (0.5, 4)


def test_verdicts_that_cannot_be_read_are_counted_and_not_guessed(responses: ResponsesConfig, tmp_path: Path):
    def mumbles(request: Request, number: int) -> Reply:
        mine_comes_second = request.user.find("bad") < request.user.find("good")
        unclear = "q0" in request.user or "q1" in request.user
        return completion("I prefer A") if unclear and mine_comes_second else fair(request, number)

    result = judged(mumbles, responses, tmp_path)
    (pair,) = result.pairs
    assert pair.outcomes == ["unparsable", "unparsable", "loss", "tie"]
    assert (pair.rate.wins, pair.rate.unparsable, pair.rate.rate) == (0, 2, 0.25)
    # A missing verdict does not count as changed by the order.
    assert pair.changed_with_order == 0
    (pair,) = judged(mumbles, responses, tmp_path, unparsable="tie").pairs
    assert (pair.rate.unparsable, pair.rate.rate) == (2, 0.375)
    console = Console(record=True, width=150)
    console.print(table_of(result))
    assert "no verdict" in console.export_text()


def test_a_question_to_the_judge_has_the_places_of_both_responses(
    responses: ResponsesConfig, tmp_path: Path, monkeypatch
):
    places: list[str] = []

    def ask_all(asks, options, run):
        places.extend(ask.where for ask in asks)
        return Judged(["[[C]]" for _ in asks], None, None)

    monkeypatch.setattr(pairwise_module, "ask_all", ask_all)
    pairwise(PairwiseOptions(responses=responses), run_in(tmp_path))
    mine, theirs = responses.files
    assert places[:3] == [f"{mine}:1 and {theirs}:1", f"{theirs}:1 and {mine}:1", f"{mine}:2 and {theirs}:2"]


def test_names_of_files_do_not_move_the_cursor(tmp_path: Path):
    lines = [
        {"model": model, "prompt": "q", "response": "r", "score": score, "category": "\x1b[2J\u202ecategory"}
        for model, score in (("\x1b]0;title\x07a", 1), ("\x1b[31mb", 2))
    ]
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = ResponsesConfig(files=(str(tmp_path / "both.jsonl"),))
    console = Console(record=True, width=150)
    console.print(table_of(pairwise(PairwiseOptions(responses=files, by="scores"), run_in(tmp_path))))
    safe = safety.SafetyOptions(responses=files, by="scores", score_field="score")
    console.print(safety.table_of(safety.safety(safe, run_in(tmp_path))))
    shown = console.export_text(styles=False)
    assert r"\x1b[2J\u202ecategory" in shown
    assert all(line.isprintable() for line in shown.splitlines())


def test_counts_as_no_table_has_are_refused(responses: ResponsesConfig, tmp_path: Path):
    for counts in ((0, 0, 0), (-1, 2, 3), (1, 2), (10**30, 1, 1)):
        config = PairwiseOptions(responses=responses, by="scores", published=(counts,))
        with pytest.raises(InputError, match=r"config\.evaluation\.published\[0\] is"):
            pairwise(config, run_in(tmp_path))


def test_scores(responses: ResponsesConfig, tmp_path: Path):
    config = PairwiseOptions(responses=responses, by="scores", published=((1, 2, 1),))
    result = pairwise(config, run_in(tmp_path))
    (pair,) = result.pairs
    assert pair.outcomes == ["win", "win", "loss", "tie"]
    assert (result.spent, pair.changed_with_order) == (None, None)
    assert pair.published is not None
    assert pair.published.rate == 0.375
    within = PairwiseOptions(responses=responses, by="scores", scores=ScoresConfig(margin=1.0))
    assert pairwise(within, run_in(tmp_path)).pairs[0].outcomes == ["tie"] * 4
    console = Console(record=True, width=150)
    console.print(table_of(result))
    assert cells(console) == [
        ["mine", "theirs", "2", "1", "1", "62.5%", "25.0 to 100.0%"],
        ["", "as published", "1", "2", "1", "37.5%", "0.0 to 75.0%"],
    ]
    assert json.loads(json.dumps(dataclasses.asdict(result)))["pairs"][0]["rate"]["wins"] == 2


def test_intervals_are_drawn_from_the_configs_seed(tmp_path: Path):
    draw = np.random.default_rng(0)
    for model in ("mine", "theirs"):
        lines = [{"prompt": f"q{i}", "response": "r", "score": float(draw.normal())} for i in range(3001)]
        (tmp_path / f"{model}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (str(tmp_path / "mine.jsonl"), str(tmp_path / "theirs.jsonl"))
    responses = ResponsesConfig(files=files, model_field=None)
    options = PairwiseOptions(
        responses=responses, by="scores", scores=ScoresConfig(margin=0.5), published=((2600, 3511, 1900),)
    )
    config = parse_evaluate_config({"evaluation": {"name": "pairwise"}, "seed": 1})
    outcome = evaluate(Run(config, None, tmp_path / "out", Console(quiet=True), {}), options)
    (pair,) = outcome.scores["pairs"]
    assert pair["rate"] == dataclasses.asdict(win_rate(pair["outcomes"], seed=1))
    assert pair["rate"] != dataclasses.asdict(win_rate(pair["outcomes"], seed=0))
    assert pair["published"] == dataclasses.asdict(of_counts(2600, 3511, 1900, seed=1))
    assert pair["published"] != dataclasses.asdict(of_counts(2600, 3511, 1900, seed=0))


def test_models_that_were_asked_other_questions_are_not_compared(responses: ResponsesConfig, tmp_path: Path):
    lines = (tmp_path / "theirs.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "theirs.jsonl").write_text("".join(lines[:-1]))
    for pair in (("mine", "theirs"), ("theirs", "mine")):
        config = PairwiseOptions(responses=responses, by="scores", pairs=(pair,))
        with pytest.raises(InputError, match=r"mine.jsonl:4: the question has no response of the model 'theirs'"):
            pairwise(config, run_in(tmp_path))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"pairs": [["mine"]]}, r"config.evaluation.pairs\[0\] is \['mine'\], but should be two models"),
        ({"pairs": [["mine", "others"]]}, "no responses of a model 'others'; did you mean theirs"),
        ({"published": [[1, 2]]}, r"config.evaluation.published\[0\] is \[1, 2\], but should be wins, losses and ties"),
        ({"published": [[1, 2, 3], [1, 2, 3]]}, "config.evaluation.published is of 2 pairs, but there are 1"),
        ({"scores": {"field": "points"}}, r"mine.jsonl:1: there is no field 'points'; there are model, prompt"),
    ],
)
def test_what_cannot_be_compared(responses: ResponsesConfig, tmp_path: Path, fields: dict, says: str):
    plain = {"responses": {"files": list(responses.files)}, "by": "scores", **fields}
    config = parse_section(PairwiseOptions, plain, "config.evaluation")
    with pytest.raises(InputError, match=says):
        pairwise(config, run_in(tmp_path))


def test_one_model_has_nothing_beside_it(responses: ResponsesConfig, tmp_path: Path):
    config = PairwiseOptions(responses=ResponsesConfig(files=responses.files[:1]), by="scores")
    with pytest.raises(InputError, match="responses of one model, 'mine'"):
        pairwise(config, run_in(tmp_path))
