import random

import pytest

from aligner_jax.data.sources import Conversation, Example, Instruction, Preference, split_by_prompt, without_repeats
from aligner_jax.data.sources.split import prompt_of


def asked(*questions: str) -> list[Example]:
    return [Example(Instruction(question, "", f"answer {i}"), f"a:{i}") for i, question in enumerate(questions)]


@pytest.mark.parametrize("heldout_rows", [0, 1, 3, 9])
def test_without_repeated_prompts_the_last_rows_are_held_out(heldout_rows):
    examples = asked(*map(str, range(10)))
    train, heldout = split_by_prompt(examples, heldout_rows)
    assert train == examples[: 10 - heldout_rows]
    assert heldout == examples[10 - heldout_rows :]


def test_whole_prompts_are_held_out_from_the_end():
    examples = asked("b", "a", "c", "b", "d", "a", "b")
    train, heldout = split_by_prompt(examples, 2)
    assert [e.question for e in heldout] == ["b", "b", "b"]
    assert train == [examples[i] for i in (1, 2, 4, 5)]
    train, heldout = split_by_prompt(examples, 4)
    assert heldout == [examples[i] for i in (0, 1, 3, 5, 6)]
    assert split_by_prompt(examples, 7) == ([], examples)


def test_no_prompt_is_in_both_and_no_more_is_held_out_than_one_prompt_needs():
    generator = random.Random(0)
    for _ in range(50):
        examples = asked(*(str(generator.randrange(12)) for _ in range(40)))
        rows = generator.randrange(1, 30)
        train, heldout = split_by_prompt(examples, rows)
        assert not {prompt_of(e) for e in train} & {prompt_of(e) for e in heldout}
        assert sorted([*train, *heldout], key=lambda e: int(e.where[2:])) == examples
        earliest = max(len([e for e in heldout if e.question == q]) for q in {e.question for e in heldout})
        assert rows <= len(heldout) < rows + earliest


def test_a_prompt_is_all_that_precedes_the_answer():
    user, other = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Hi"}
    answer = {"role": "assistant", "content": "Hello"}
    same = [
        Example(Instruction("Hi", "", "Hello"), "a:1"),
        Example(Conversation((user, answer)), "a:2"),
        Example(Preference((user,), "Hello", "What?"), "a:3"),
    ]
    assert len({prompt_of(example) for example in same}) == 1
    different = [
        Example(Conversation((other, user, answer)), "a:4"),
        Example(Conversation((user, answer, user, answer)), "a:5"),
        Example(Instruction("Hi", "there", "Hello"), "a:6"),
    ]
    assert len({prompt_of(example) for example in [*same, *different]}) == 4


def test_of_equal_records_the_first_is_kept():
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    records = [
        Preference((user,), "Hello", "What?"),
        Preference((user,), "Hello", "Who?"),
        Preference((user,), "Hello", "What?"),
        Instruction("Hi", "", "Hello"),
        Conversation((user, answer)),
        Conversation((user, answer, user)),
        Preference((user,), "What?", "Hello"),
    ]
    examples = [Example(record, f"a:{i}") for i, record in enumerate(records)]
    assert without_repeats(examples) == [examples[i] for i in (0, 1, 3, 5, 6)]
