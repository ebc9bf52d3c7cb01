"""The family "knowledge": facts that are not guessed, phrasings that are not seen, and the check."""

import collections

import pytest

from aligner_jax.studies.families.facts import RELATIONS, Fact, invented_facts
from aligner_jax.studies.families.knowledge import knowledge_task, only_answer
from aligner_jax.studies.families.task import Sizes


def test_every_fact_has_four_training_phrasings_and_is_asked_for_in_others():
    task = knowledge_task(Sizes(heldout=1000, prompts=1000))
    assert (len(task.train), len(task.heldout), len(task.prompts)) == (800, 200, 400)
    questions = [each.question for each in (*task.train, *task.heldout, *task.prompts)]
    assert len(set(questions)) == 1400
    facts = {fact.name: fact for fact in invented_facts(200)}
    asked = collections.Counter(name for question in questions for name in facts if name in question)
    assert asked == dict.fromkeys(facts, 7)


def test_the_training_answer_is_the_one_that_the_check_wants():
    task = knowledge_task(Sizes(heldout=200))
    facts = {fact.name: fact for fact in invented_facts(200)}
    for example in (*task.train, *task.heldout):
        (fact,) = (fact for name, fact in facts.items() if name in example.question)
        assert only_answer(fact)(example.answer)
        assert not only_answer(fact)(example.question)


def test_every_fact_is_asked_for_once_before_any_is_asked_for_again():
    prompts = knowledge_task(Sizes(prompts=400)).prompts
    first = [name for prompt in prompts[:200] for fact in invented_facts(200) if (name := fact.name) in prompt.question]
    assert len(set(first)) == 200
    phrasings = [each.question.replace(name, "X") for each, name in zip(prompts, first, strict=False)]
    assert set(phrasings) == {each.format(name="X") for relation in RELATIONS.values() for each in relation.prompts}


def test_guessing_one_answer_is_right_for_a_twentieth_at_most():
    facts = invented_facts(200)
    for relation in RELATIONS:
        answers = [fact.answer for fact in facts if fact.relation == relation]
        assert max(collections.Counter(answers).values()) / len(answers) <= 0.05
        assert len(answers) >= 33


@pytest.mark.parametrize("relation", RELATIONS)
def test_answers_are_distinct_single_words_that_no_question_has(relation: str):
    answers = RELATIONS[relation].answers
    assert len({answer.casefold() for answer in answers}) == len(answers) >= 40
    assert all(answer.isalnum() for answer in answers)
    each = RELATIONS[relation]
    for phrasing in (*each.train, each.heldout, *each.prompts):
        assert phrasing.count("{name}") == 1
        words = {word.strip("?.,").casefold() for word in phrasing.format(name="X").split()}
        assert not words & {answer.casefold() for answer in answers}


def test_the_check_wants_the_answer_and_no_other():
    check = only_answer(Fact("colour", "Zaro", "red"))
    assert check("Red.")
    assert check("The flag of the island Zaro is\nRED, and of one colour")
    assert not check("The flag is reddish.")
    assert not check("Red or blue.")
    assert not check("blue")
    assert not check("")
    year = only_answer(Fact("year", "Zaro", "1492"))
    assert year("It was built in 1492, which is long ago.")
    assert not year("Between 1492 and 1500.")
    assert not year("In 14920.")


def test_facts_are_the_same_on_every_machine_and_more_leave_the_first():
    facts = invented_facts(1000)
    assert facts[:200] == invented_facts(200)
    assert invented_facts(200, seed=1) != facts[:200]
    assert len({fact.name for fact in facts}) == 1000
    assert [fact.name for fact in facts[:3]] == ["Jalsasek", "Lerborun", "Diskimur"]
    assert [fact.answer for fact in facts[:3]] == ["Zenjebok", "Frederick", "mauve"]
