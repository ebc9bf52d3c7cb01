import json
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.response_files import ResponsesConfig, check_same_questions, model_of, read_responses


def write_lines(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_a_file_for_each_model_or_a_field_that_names_it(tmp_path: Path):
    one = write_lines(tmp_path / "one.jsonl", {"prompt": "p", "response": "r"}, {"prompt": "q", "response": ""})
    two = write_lines(tmp_path / "two.jsonl", {"prompt": "p", "response": "s"})
    models = read_responses(ResponsesConfig(files=(one, two), model_field=None))
    assert {name: [(r.prompt, r.text) for r in of.values()] for name, of in models.items()} == {
        "one": [("p", "r"), ("q", "")],
        "two": [("p", "s")],
    }
    assert models["one"]["q"].where == f"{one}:2"
    (tmp_path / "all.CSV").write_text("who,asked,said\na,p,1\nb,p,2\na,q,3\n")
    config = ResponsesConfig(
        files=(str(tmp_path / "all.CSV"),), model_field="who", prompt_field="asked", response_field="said"
    )
    models = read_responses(config)
    assert {name: [r.text for r in of.values()] for name, of in models.items()} == {"a": ["1", "3"], "b": ["2"]}


def test_bad_files_are_one_sentence_that_names_the_line_and_quotes_no_text(tmp_path: Path):
    def said(*lines: dict | str, **fields) -> str:
        path = tmp_path / "m.jsonl"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        with pytest.raises(InputError) as caught:
            read_responses(ResponsesConfig(files=(str(path),), **{"model_field": None, **fields}))
        assert str(caught.value).startswith(str(path))
        assert "secret" not in str(caught.value)
        return str(caught.value).removeprefix(str(path))

    good = {"prompt": "secret", "response": "secret"}
    assert said(good, good) == f":2: the question has a response of 'm' already, in {tmp_path / 'm.jsonl'}:1"
    assert said(good, "{").startswith(":2 is not JSON")
    assert said({"prompt": "secret"}).startswith(":1: the record has no field 'response'; its fields are 'prompt'")
    assert said({**good, "response": 3}) == ":1: the field 'response' holds a number, not text"
    assert said(good, model_field="model").startswith(":1: the record has no field 'model'")
    with pytest.raises(InputError, match=r"config\.evaluation\.responses\.files is empty"):
        read_responses(ResponsesConfig())


def test_two_files_that_would_be_one_model(tmp_path: Path):
    (tmp_path / "b").mkdir()
    files = [write_lines(tmp_path / name, {"prompt": "p", "response": "r"}) for name in ("m.jsonl", "b/m.jsonl")]
    with pytest.raises(InputError, match="would be the model 'm', as another"):
        read_responses(ResponsesConfig(files=tuple(files), model_field=None))


def test_unequal_questions_and_unknown_models(tmp_path: Path):
    one = write_lines(tmp_path / "one.jsonl", {"prompt": "p", "response": "r"}, {"prompt": "q", "response": "r"})
    two = write_lines(tmp_path / "two.jsonl", {"prompt": "p", "response": "r"})
    models = read_responses(ResponsesConfig(files=(one, two), model_field=None))
    for names in (("one", "two"), ("two", "one")):
        with pytest.raises(InputError) as caught:
            check_same_questions(models[names[0]], models[names[1]], names)
        assert str(caught.value) == f"{one}:2: the question has no response of the model 'two'"
    check_same_questions(models["two"], models["two"], ("two", "two"))
    with pytest.raises(InputError, match="no responses of a model 'onee'; did you mean one"):
        model_of(models, "onee")


@pytest.mark.parametrize(
    ("value", "number"), [(2, 2.0), ("0.25", 0.25), (True, 1.0), ("False", 0.0), (" true ", 1.0), ("-1e-3", -0.001)]
)
def test_numbers(tmp_path: Path, value: object, number: float):
    path = write_lines(tmp_path / "m.jsonl", {"prompt": "p", "response": "r", "score": value})
    assert read_responses(ResponsesConfig(files=(path,), model_field=None))["m"]["p"].number("score") == number


@pytest.mark.parametrize("value", ["", "nan", "inf", "high", "1_0", None, [1], float("nan"), 10**400])
def test_what_is_no_number(tmp_path: Path, value: object):
    path = write_lines(tmp_path / "m.jsonl", {"prompt": "p", "response": "r", "score": value})
    response = read_responses(ResponsesConfig(files=(path,), model_field=None))["m"]["p"]
    with pytest.raises(InputError, match=r"m\.jsonl:1: the field 'score' holds .*, not a finite number"):
        response.number("score")
    with pytest.raises(InputError, match=r"m\.jsonl:1: there is no field 'scores'; did you mean score"):
        response.number("scores")


def test_a_field_of_text_is_no_number_and_stays_unquoted(tmp_path: Path):
    path = write_lines(tmp_path / "m.jsonl", {"prompt": "p", "response": "secret"})
    response = read_responses(ResponsesConfig(files=(path,), model_field=None))["m"]["p"]
    with pytest.raises(InputError, match=r"m\.jsonl:1: the field 'response' holds a string, not a finite number"):
        response.number("response")


def test_a_column_without_a_name_is_in_no_ones_way(tmp_path: Path):
    (tmp_path / "m.csv").write_text(",prompt,response,score\n0,p,r,1\n")
    response = read_responses(ResponsesConfig(files=(str(tmp_path / "m.csv"),), model_field=None))["m"]["p"]
    with pytest.raises(InputError, match=r"m\.csv:2: there is no field 'points'; there are prompt, response, score"):
        response.number("points")
