"""The authors' MMLU: its prompts and its scores."""

from pathlib import Path

import pytest

from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import InputError
from aligner_jax.evals import mmlu_generated
from aligner_jax.evals.generating import encoded
from aligner_jax.evals.mmlu_generated import PROMPTS, MmluGeneratedOptions, choose_subjects, is_a_choice, is_right
from aligner_jax.evals.mmlu_questions import MultipleChoice

QUESTION = MultipleChoice("human_aging", "Why?", ("ATP.", "It's so", "[none]", "ADP."), 0, "here")


@pytest.mark.parametrize(
    ("text", "right", "a_choice"),
    [
        (" ATP.", True, True),
        (" ATP\n", True, True),
        (" 'ATP.'", True, True),
        (" ATP.\n\n### Explanation: cells", True, True),
        (" ADP.", False, True),
        (" none", False, True),
        (" It's so.", False, True),
        (" A", False, False),
        (" A. ATP.", False, False),
        (" atp.", False, False),
        (" ATP because cells", False, False),
        ("", False, False),
    ],
)
def test_an_answer_is_the_choice_itself(text: str, right: bool, a_choice: bool):
    assert (is_right(text, QUESTION), is_a_choice(text, QUESTION)) == (right, a_choice)


def test_the_choices_are_a_list_in_both_prompts():
    for name, last in (("adapted", "The correct answer is:"), ("base", "The single correct answer is:")):
        prompt = PROMPTS[name].format(**QUESTION._asdict() | {"choices": list(QUESTION.choices)})
        assert "(with answers) about human_aging.\nWhy?\n Pick " in prompt
        assert prompt.endswith(
            "### Input: The choices are: \n['ATP.', \"It's so\", '[none]', 'ADP.']\n\n### Response: \n" + last
        )


def test_subjects_are_chosen_by_name_and_cut_each():
    subjects = {"human_aging": [QUESTION] * 5, "virology": [QUESTION] * 2}
    assert choose_subjects(subjects, (), 3) == {"human_aging": [QUESTION] * 3, "virology": [QUESTION] * 2}
    assert choose_subjects(subjects, ("virology",), None) == {"virology": [QUESTION] * 2}
    with pytest.raises(InputError, match=r"config.evaluation.subjects has 'virolgy'; did you mean virology\?"):
        choose_subjects(subjects, ("virolgy",), None)


def test_questions_are_asked_and_counted(asked, tiny_subject, tmp_path: Path):
    (tmp_path / "anatomy_test.csv").write_text("Which?,a,b,c,d,A\n")
    (tmp_path / "virology_test.csv").write_text("Which?,a,b,c,d,B\n" * 4)
    texts = [" a.", " b", " a", " nothing"]
    options = MmluGeneratedOptions(path=str(tmp_path))
    scores, prompts, seed = asked(mmlu_generated, options, texts, limit=3, seed=5)
    assert (scores["questions"], scores["accuracy"], scores["answers_that_are_a_choice"]) == (4, 0.5, 0.75)
    assert scores["subjects"] == {"anatomy": 1.0, "virology": 1 / 3}
    assert scores["mean_over_subjects"] == 2 / 3
    whole = encoded(tiny_subject(), PROMPTS["base"].format(subject="virology", question="Which?", choices=list("abcd")))
    assert [each[1:] for each in prompts] == [(100, Sampling(0.1, 200), ("###",), i, False) for i in range(4)]
    # The model must see the prompt's last tokens, and its context is 512.
    room = 512 - 100
    assert prompts[1].ids == whole[-room:]
    assert scores["prompts_cut_at_their_beginning"] == 4 * (len(whole) > room)
    options = MmluGeneratedOptions(path=str(tmp_path), max_new_tokens=500)
    scores, prompts, _ = asked(mmlu_generated, options, texts, limit=3)
    assert prompts[1].ids == whole[-12:]
    assert (scores["prompts_cut_at_their_beginning"], seed) == (4, 5)
