"""The authors' MMLU: what is asked and what counts."""

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.mmlu_generated import PROMPTS, choose_subjects, is_a_choice, is_right
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
