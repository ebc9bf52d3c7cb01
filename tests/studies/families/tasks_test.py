"""Tasks by name, their losses, and the errors of names and files."""

import json
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.studies.families.task import Sizes, divided
from aligner_jax.studies.families.tasks import FILES, NAMES, tasks

SMALL = Sizes(train=4, heldout=2, prompts=3, facts=12)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with small files: Alpaca and GSM8K, whose last question is its first again, and PKU-SafeRLHF.

    Every prompt of the last has two different pairs, of which one is there three times.
    """
    alpaca = [
        {"instruction": f"Why is {i} a number?", "input": "", "output": f"It counts things, such as {i} apples."}
        for i in (*range(9), 0)
    ]
    gsm8k = [{"question": f"What is {i} + {i}?", "answer": f"It is {2 * i}.\n#### {2 * i}"} for i in (*range(9), 0)]
    pairs = [{"prompt": f"What is {i}?", "response": [f"yes {j}", "no"]} for j in (0, 1, 1) for i in range(9)]
    for name, text in (
        ("pku", json.dumps([*pairs, *pairs[:1]])),
        ("alpaca", json.dumps(alpaca)),
        ("gsm8k", "".join(json.dumps(record) + "\n" for record in gsm8k)),
    ):
        (tmp_path / FILES[name]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / FILES[name]).write_text(text)
    return tmp_path


def test_all_tasks_are_made_and_no_prompt_is_in_training(data: Path):
    made = tasks(NAMES, data=data, sizes=SMALL)
    assert tuple(task.name for task in made) == NAMES
    for task in made:
        tested = task.prompts or task.test
        parts = [{each.question for each in part} for part in (task.train, task.heldout, tested)]
        assert not parts[0] & parts[1]
        assert not (parts[0] | parts[1]) & parts[2]
        sizes = {"knowledge": 48, "alpaca": 5, "gsm8k": 5, "answers": 8, "pairs": 8}
        assert len(task.train) == sizes.get(task.family, 4)
        checked = task.name.partition("/")[0] in ("form", "knowledge", "reasoning")
        assert bool(task.prompts) == (not task.test) == checked == (task.max_new_tokens > 0)
    assert {task.family for task in made} == {"form", "knowledge", "reasoning", *list(sizes)[1:]}


def test_a_form_has_eight_styles_and_a_loss_has_its_family():
    assert sum(name.startswith("form/") for name in NAMES) >= 8
    assert {name for name in NAMES if name.startswith("loss/")} == {"loss/alpaca", "loss/gsm8k"}


def test_a_loss_holds_out_whole_prompts(data: Path):
    (alpaca, gsm8k) = tasks(["loss/alpaca", "loss/gsm8k"], data=data, sizes=SMALL)
    assert (alpaca.family, gsm8k.family) == ("alpaca", "gsm8k")
    # The last question is also the first, and both are tested.
    assert [each.question for each in gsm8k.test] == [f"What is {i} + {i}?" for i in (0, 8, 0)]
    assert [each.question for each in gsm8k.heldout] == [f"What is {i} + {i}?" for i in (6, 7)]
    assert [each.question for each in gsm8k.train] == [f"What is {i} + {i}?" for i in range(1, 6)]
    assert gsm8k.train[0].answer == "It is 2.\n#### 2"


def test_forms_without_a_folder_ask_the_questions_of_the_quickstart(data: Path):
    names = ["form/json", "form/lower"]
    own, given = (tasks(names, data=folder, sizes=SMALL) for folder in (None, data))
    assert [each.question for each in own[0].prompts] == [each.question for each in own[1].prompts]
    assert all("a number?" in each.question for each in given[0].prompts)
    assert not any("a number?" in each.question for each in own[0].prompts)


def test_preferences_are_divided_by_prompt_and_pairs_come_after_answers(data: Path):
    answers, pairs = tasks(["preference/answers", "preference/pairs"], data=data, sizes=SMALL)
    for task in (answers, pairs):
        asked = [[each.question for each in part] for part in (task.test, task.heldout, task.train)]
        # One pair of each prompt is tested, and two are trained on.
        assert asked == [[f"What is {i}?" for i in of] for of in ((0, 1, 2), (3, 4), (5, 5, 6, 6, 7, 7, 8, 8))]
    assert (answers.after, pairs.after, pairs.family) == (None, "preference/answers", "pairs")
    with pytest.raises(InputError, match="begins from the adapters of preference/answers: name that before it"):
        tasks(["preference/pairs", "preference/answers"], data=data, sizes=SMALL)
    with pytest.raises(InputError, match=r"has 9 prompts, too few for 2 held out and 7 tested"):
        tasks(["preference/answers"], data=data, sizes=Sizes(heldout=2, prompts=7))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["form/json", "form/haiku"], r"the task 'form/haiku' is unknown; there are form/json, form/bullets, "),
        (["form"], r"the task 'form' is unknown"),
        (["loss/gsm8k"], r"a task of gsm8k needs a folder of data files with reasoning/gsm8k/train\.jsonl"),
    ],
)
def test_unknown_names_and_missing_folders_are_errors(names: list[str], message: str):
    with pytest.raises(InputError, match=message):
        tasks(names, data=None)


def test_missing_files_are_errors(tmp_path: Path):
    for name, file in (
        ("form/json", FILES["alpaca"]),
        ("loss/alpaca", FILES["alpaca"]),
        ("loss/gsm8k", FILES["gsm8k"]),
        ("preference/answers", FILES["pku"]),
    ):
        with pytest.raises(InputError, match=rf"{file} is missing; the folder of data files needs it"):
            tasks([name], data=tmp_path)


def test_a_file_with_too_few_examples_or_of_preferences_is_an_error(data: Path):
    with pytest.raises(InputError, match=r"train\.jsonl has 10 examples, too few for 9 held out and 3 tested"):
        tasks(["loss/gsm8k"], data=data, sizes=Sizes(heldout=9, prompts=3))
    (data / FILES["alpaca"]).write_text(json.dumps([{"prompt": "Why?", "chosen": "So.", "rejected": "No."}]))
    with pytest.raises(InputError, match="is a preference, but loss/alpaca learns from answers"):
        tasks(["loss/alpaca"], data=data, sizes=SMALL)


def test_prompts_are_divided_first_and_training_last():
    assert divided(range(12), Sizes(4, 2, 3), "x") == (range(5, 9), range(3, 5), range(3))
    with pytest.raises(
        InputError, match="x has 8 questions that suit, too few for 4 to train, 2 held out and 3 prompts"
    ):
        divided(range(8), Sizes(4, 2, 3), "x")
