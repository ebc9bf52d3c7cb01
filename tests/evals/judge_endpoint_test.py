"""A judge over real HTTP on loopback."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
from judge_server import ASKS, KEY, TEXTS, Reply, Request, completion, config_of, echo, failure, judge_server
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_endpoint import ask_endpoint
from aligner_jax.evals.judge_prompts import Ask

pytestmark = pytest.mark.usefixtures("judge_key")


def test_answers_come_in_order_and_requests_are_as_configured(tmp_path: Path, console: Console):
    with judge_server(echo) as server:
        answers, _ = ask_endpoint(ASKS, config_of(server.url, max_tokens=7), tmp_path, console)
    assert [answer.text for answer in answers] == TEXTS
    request = next(r for r in server.requests if r.user == "question 0")
    assert request.path == "/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.body == {
        "model": "judge",
        "messages": [{"role": "system", "content": "be fair"}, {"role": "user", "content": "question 0"}],
        "max_tokens": 7,
        "temperature": 0.0,
    }


def test_what_is_left_to_the_endpoint_is_not_sent(tmp_path: Path, console: Console):
    with judge_server(echo) as server:
        config = config_of(server.url, temperature=None, max_tokens=7, max_tokens_name="max_completion_tokens")
        ask_endpoint([Ask("", "question 0")], config, tmp_path, console)
    assert server.requests[0].body == {
        "model": "judge",
        "messages": [{"role": "user", "content": "question 0"}],
        "max_completion_tokens": 7,
    }


def test_nothing_is_asked_twice_and_the_key_is_in_no_file(tmp_path: Path, console: Console):
    with judge_server(echo) as server:
        config = config_of(server.url)
        ask_endpoint([*ASKS, ASKS[0]], config, tmp_path, console)
        assert len(server.requests) == 5
        answers, spent = ask_endpoint(ASKS, config, tmp_path, console)
        assert len(server.requests) == 5
        assert [answer.text for answer in answers] == TEXTS
        assert (spent.asked, spent.kept) == (0, 5)
        for changed in ({"max_tokens": 8}, {"temperature": 0.5}, {"model": "another"}, {"url": f"{server.url}/"}):
            before = len(server.requests)
            ask_endpoint(ASKS[:1], dataclasses.replace(config, **changed), tmp_path, console)
            assert len(server.requests) == before + 1, changed
        ask_endpoint([Ask("be unfair", "question 0")], config, tmp_path, console)
        assert len(server.requests) == 10
    files = list(tmp_path.rglob("*"))
    assert len(files) == 10
    assert not any(KEY in file.read_text() for file in files)


def test_each_answer_is_on_disk_before_the_next_is_asked_for(tmp_path: Path, console: Console):
    there = []

    def reply(request: Request, number: int) -> Reply:
        there.append(len(list(tmp_path.glob("*.json"))))
        return echo(request, number)

    with judge_server(reply) as server:
        ask_endpoint(ASKS, config_of(server.url, concurrency=1), tmp_path, console)
    assert there == [0, 1, 2, 3, 4]


def test_a_run_that_ended_early_asks_only_for_the_rest(tmp_path: Path, console: Console):
    def refuse_from_the_third(request: Request, number: int) -> Reply:
        return echo(request, number) if number < 2 else failure(401, f"wrong key {KEY}, {'x ' * 86} {KEY}")

    with judge_server(refuse_from_the_third) as server, pytest.raises(InputError) as caught:
        ask_endpoint(ASKS, config_of(server.url, concurrency=1), tmp_path, console)
    assert f"status 401: wrong key …, {'x ' * 86}…; 2 answers of 5 are kept" in str(caught.value)
    assert KEY[:8] not in str(caught.value)
    assert len(server.requests) == 3
    port = int(server.url.split(":")[2].split("/")[0])
    with judge_server(echo, port) as again:
        answers, spent = ask_endpoint(ASKS, config_of(server.url, concurrency=1), tmp_path, console)
    assert [r.user for r in again.requests] == ["question 2", "question 3", "question 4"]
    assert [answer.text for answer in answers] == TEXTS
    assert (spent.asked, spent.kept) == (3, 2)


def test_a_full_endpoint_is_asked_again_after_as_long_as_it_says(tmp_path: Path, console: Console):
    def full_once(request: Request, number: int) -> Reply:
        return failure(429, Retry_After="1.2") if number == 0 else echo(request, number)

    with judge_server(full_once) as server:
        answers, _ = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert answers[0].text == TEXTS[0]
    first, second = server.requests
    # Without the header the wait would be half a second at most.
    assert second.at - first.at >= 1.2


@pytest.mark.parametrize(
    "trouble",
    [
        failure(503),
        completion("cut", hang_up=True),
        Reply(b"<html>busy</html>", headers={"Content-Type": "text/html"}),
        Reply(b'{"choices": []}'),
        Reply(b"{"),
        Reply(b'{"choices": [{"message": {"content": 3}}]}'),
    ],
    ids=["503", "hangs up", "a page", "no choices", "half an object", "a number"],
)
def test_what_goes_wrong_once_is_asked_again(trouble: Reply, tmp_path: Path, console: Console):
    def once(request: Request, number: int) -> Reply:
        return trouble if number == 0 else echo(request, number)

    with judge_server(once) as server:
        answers, _ = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert len(server.requests) == 2
    assert answers[0].text == TEXTS[0]


@pytest.mark.parametrize(
    ("trouble", "fields", "says"),
    [
        (failure(500, "on fire"), {"retries": 1}, "answers with status 500: on fire"),
        (completion("late", delay=1.0), {"retries": 0, "timeout": 0.2}, "did not answer within 0.2 seconds"),
        (completion("cut", hang_up=True), {"retries": 0}, "cannot be reached: "),
        (Reply(b"no json"), {}, "answered 3 times with something that is no chat completion"),
        (failure(404, "there is no such model"), {}, "answers with status 404: there is no such model"),
    ],
    ids=["500", "late", "hangs up", "no completion", "404"],
)
def test_what_stays_wrong_is_one_sentence(trouble: Reply, fields: dict, says: str, tmp_path: Path, console: Console):
    with judge_server(lambda request, number: trouble) as server, pytest.raises(InputError) as caught:
        ask_endpoint(ASKS[:1], config_of(server.url, **fields), tmp_path, console)
    assert str(caught.value).startswith(server.url)
    assert says in str(caught.value)
    assert "0 answers of 1 are kept" in str(caught.value)
    assert list(tmp_path.glob("*.json")) == []
    if "retries" in fields:
        assert len(server.requests) == fields["retries"] + 1


def test_requests_are_spaced_and_those_that_are_asked_again_too(tmp_path: Path, console: Console):
    def full_once(request: Request, number: int) -> Reply:
        return failure(429, Retry_After="0.001") if number == 0 else echo(request, number)

    with judge_server(full_once) as server:
        ask_endpoint(ASKS[:4], config_of(server.url, requests_per_minute=300, concurrency=1), tmp_path, console)
    # The rate limit applies to sending; the first request also opens a connection before it arrives.
    times = [request.at for request in server.requests][1:]
    assert len(times) == 4
    assert times[-1] - times[0] >= 3 * 0.2 - 0.05


def test_so_many_are_under_way_at_once(tmp_path: Path, console: Console):
    under_way, most = set(), []

    def reply(request: Request, number: int) -> Reply:
        under_way.add(number)
        most.append(len(under_way))
        if number < 2:
            time.sleep(0.3)
        under_way.discard(number)
        return echo(request, number)

    with judge_server(reply) as server:
        ask_endpoint(ASKS, config_of(server.url, concurrency=2), tmp_path, console)
    assert max(most) == 2


def test_cost_is_tokens_times_prices(tmp_path: Path, console: Console):
    with judge_server(echo) as server:
        config = config_of(server.url, prompt_price=3.0, completion_price=15.0)
        ask_endpoint(ASKS[:2], config, tmp_path, console)
        _, spent = ask_endpoint(ASKS, config, tmp_path, console)
        assert (spent.prompt_tokens, spent.completion_tokens, spent.uncounted) == (1000, 50, 0)
        assert spent.cost == pytest.approx((1000 * 3 + 50 * 15) / 1e6)
        assert spent.cost_now == pytest.approx((600 * 3 + 30 * 15) / 1e6)
        assert "3 answers asked for, 2 kept from before" in str(spent)
        assert "$0.0037, of which $0.0022 now" in str(spent)
        unpriced = dataclasses.replace(config, prompt_price=None)
        assert "no prices are configured" in str(ask_endpoint(ASKS, unpriced, tmp_path, console)[1])


def test_tokens_that_are_not_counted_and_a_judge_that_declines(tmp_path: Path, console: Console):
    without = json.dumps({"choices": [{"message": {"role": "assistant", "content": None}}]}).encode()
    with judge_server(lambda request, number: Reply(without)) as server:
        answers, spent = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert answers[0].text == ""
    assert (spent.prompt_tokens, spent.uncounted) == (0, 1)
    assert "not counted by the endpoint: 1 answers" in str(spent)
    half = json.dumps({"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 7}}).encode()
    with judge_server(lambda request, number: Reply(half)) as server:
        _, spent = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path / "half", console)
    assert (spent.prompt_tokens, spent.completion_tokens, spent.uncounted) == (7, 0, 1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"url": None}, "config.evaluation.endpoint.url is not set"),
        ({"url": "localhost:8000"}, "config.evaluation.endpoint.url is 'localhost:8000'"),
        ({"model": None}, "config.evaluation.endpoint.model is not set"),
        ({"key_variable": "NO_SUCH_JUDGE_KEY"}, "the environment variable NO_SUCH_JUDGE_KEY is not set"),
        ({"url": "https://…/v1"}, "config.evaluation.endpoint.url is 'https://…/v1', which cannot be used: "),
        ({"url": "http://localhost:port/v1"}, "config.evaluation.endpoint.url is 'http://localhost:port/v1', which"),
    ],
)
def test_what_is_not_configured(fields: dict, says: str, tmp_path: Path, console: Console):
    config = dataclasses.replace(config_of("http://127.0.0.1:1/v1"), **fields)
    with pytest.raises(InputError, match=says):
        ask_endpoint(ASKS, config, tmp_path, console)


@pytest.mark.parametrize("inside", ["\n", "\x7f", "é"])
def test_what_is_no_key_is_neither_sent_nor_shown(inside: str, tmp_path: Path, console: Console, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", f"{KEY}{inside}{KEY}")
    with judge_server(echo) as server, pytest.raises(InputError) as caught:
        ask_endpoint(ASKS[:1], config_of(server.url, retries=0), tmp_path, console)
    assert "TEST_JUDGE_KEY holds something that is no API key" in str(caught.value)
    assert KEY not in str(caught.value)
    assert server.requests == []


def test_a_key_in_the_place_of_its_variable_is_not_shown(tmp_path: Path, console: Console):
    config = dataclasses.replace(config_of("http://127.0.0.1:1/v1"), key_variable=KEY)
    with pytest.raises(InputError, match=r"that config.evaluation.endpoint.key_variable should name is not") as caught:
        ask_endpoint(ASKS, config, tmp_path, console)
    assert KEY not in str(caught.value)


def test_an_endpoint_without_a_key_is_sent_none(tmp_path: Path, console: Console, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with judge_server(echo) as server:
        config = dataclasses.replace(config_of(server.url), key_variable=None)
        assert ask_endpoint(ASKS[:1], config, tmp_path, console)[0][0].text == TEXTS[0]
    assert KEY not in str(server.requests[0].headers)


def test_nobody_listens(tmp_path: Path, console: Console):
    with pytest.raises(InputError, match="cannot be reached"):
        ask_endpoint(ASKS[:1], config_of("http://127.0.0.1:9/v1", retries=0), tmp_path, console)
