"""aligner_jax/studies/stopping.py: ends of runs whose loss is known as a function of the step."""

import math
from collections.abc import Callable

import pytest

from aligner_jax.studies.stopping import Course, Rule, still_to_come


def course_of(loss: Callable[[int], float], rule: Rule) -> Course:
    course = Course(rule, loss(0))
    for step in range(rule.budget + 1):
        if step and step == course.next_point:
            course.measured(loss(step))
        if course.is_over:
            return course
        assert 0 <= course.rate(step) <= 1
    raise AssertionError("a run goes on beyond its budget")


def test_what_a_power_law_has_still_to_gain_is_found():
    # At steps that double, t^-1/2 falls by a factor of the square root of 2 each time.
    losses = [2.0 + (2**k) ** -0.5 for k in range(3, 9)]
    assert still_to_come(losses) == pytest.approx(losses[-1] - 2.0, rel=1e-6)
    assert still_to_come(losses[:3]) == math.inf


def test_a_run_converges_when_little_is_left():
    rule = Rule(budget=4096, tolerance=0.005)
    course = course_of(lambda step: 1.5 + (step + 1) ** -1.0, rule)
    assert course.end == "converged"
    constant = course.points[-2]
    # The true rest is within the tolerance, as at the point before, and was not earlier.
    assert constant.loss - 1.5 <= 1.1 * rule.tolerance * constant.loss
    assert course.points[-3].loss - 1.5 <= 1.1 * rule.tolerance * course.points[-3].loss
    assert course.points[-4].loss - 1.5 > rule.tolerance * course.points[-4].loss
    # A quarter of the run is the decay.
    assert course.points[-1].step == pytest.approx(constant.step / 0.75, abs=1)


def test_a_run_that_still_learns_uses_its_budget_to_the_end():
    rule = Rule(budget=100)
    course = course_of(lambda step: 5 - 0.02 * step, rule)
    assert course.end == "budget"
    assert [point.step for point in course.points] == [0, 12, 18, 27, 40, 60, 75, 100]


@pytest.mark.parametrize("budget", [48, 60, 80, 96, 128, 250])
def test_a_point_that_the_budget_brings_forward_is_no_sign_of_convergence(budget: int):
    # A tenth of this loss is still to come.
    course = course_of(lambda step: 1.5 + 0.6 * (step + 1) ** -0.3, Rule(budget=budget))
    assert course.end == "budget"
    assert course.points[-1].step == budget


def test_a_loss_that_rises_ends_the_run_and_a_single_rise_does_not():
    course = course_of(lambda step: 1 + (step / 30 - 1) ** 2, Rule(budget=4096))
    assert course.end == "converged"
    assert course.points[-2].step < 100
    # One rise may be noise, however little was gained before.
    assert still_to_come([2.0, 1.5, 1.499, 1.51]) == math.inf
    assert still_to_come([2.0, 1.5, 1.4, 1.41, 1.3]) < math.inf
    assert still_to_come([2.0, 1.0, 1.1, 1.2]) == 0


def test_one_small_gain_is_no_sign_of_convergence():
    losses = {12: 1.554, 18: 1.439, 27: 1.348, 40: 1.347, 60: 1.24, 90: 1.15, 135: 1.08, 150: 1.07, 200: 1.0}
    assert still_to_come([losses[step] for step in (12, 18, 27, 40)]) < 0.005 * losses[40]
    assert course_of(lambda step: losses.get(step, 2.0), Rule(budget=200)).end == "budget"


def test_a_loss_that_is_no_number_ends_the_run_at_once():
    course = course_of(lambda step: math.nan if step > 12 else 1.0, Rule(budget=4096))
    assert course.end == "diverged"
    assert course.points[-1].step == 18


def test_the_rate_rises_stays_and_falls_to_0():
    course = Course(Rule(budget=16, first=12, warmup=4), 2.0)
    assert [course.rate(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    course.measured(1.0)
    assert course.next_point == 16
    assert [course.rate(step) for step in range(12, 17)] == [1, 0.75, 0.5, 0.25, 0]


@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_short_budgets_have_an_end(budget: int):
    assert course_of(lambda step: 3 - step, Rule(budget=budget)).points[-1].step <= budget
