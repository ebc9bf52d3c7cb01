"""Answers of a judge that are too long, too late, compressed, malformed or full of secrets."""

import contextlib
import gzip
import json
import socket
import threading
import time
from pathlib import Path

import pytest
from judge_server import ASKS, KEY, Reply, Request, completion, config_of, echo, failure, judge_server
from rich.console import Console

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_endpoint import ask_endpoint

pytestmark = pytest.mark.usefixtures("judge_key")


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices": {}}',
        b'{"choices": [[]]}',
        b'{"choices": [{"message": []}]}',
        b'{"choices": [{"message": {"content": {"text": "x"}}}]}',
        b'{"choices": [{"message": {"content": 1}}], "choices": []}',
        b"null",
        b"[]",
        b"[" * 200_000,
        b'{"choices":' * 50_000,
        b'{"choices": ' + b"9" * 5000 + b"}",
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        "{}".encode("utf-16"),
    ],
    ids=lambda body: repr(body[:40]),
)
def test_what_is_no_completion_is_one_sentence(body: bytes, tmp_path: Path, console: Console):
    with (
        judge_server(lambda request, number: Reply(body)) as server,
        pytest.raises(InputError, match="answered 3 times with something that is no chat completion"),
    ):
        ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)


def test_the_key_is_neither_kept_nor_shown(tmp_path: Path, console: Console):
    with judge_server(lambda request, number: completion(f"you sent {KEY}: [[A]]")) as server:
        answers, _ = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert answers[0].text == "you sent …: [[A]]"
    assert not any(KEY in file.read_text() for file in tmp_path.iterdir())


def test_a_word_for_a_key_stays_in_what_is_written(tmp_path: Path, console: Console, monkeypatch):
    monkeypatch.setenv("TEST_JUDGE_KEY", "A")
    with judge_server(lambda request, number: completion("[[A]]")) as server:
        assert ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)[0][0].text == "[[A]]"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (json.dumps({"error": {"message": "\x1b[2J\x1b[31mhi\n\u202e"}}).encode(), r": \x1b[2J\x1b[31mhi \u202e"),
        (b"\x1b]0;title\x07 busy \xff", r": \x1b]0;title\x07 busy"),
        (b"[" * 100_000, ": [[[["),
        (b'{"error": {"message": {"a": 1}}, "message": 3}', ': {"error"'),
        (b'{"error": "no such model"}', ": no such model"),
        (b"x" * 3_000_000, ": xxx"),
        (b"", "with status 400; 0 answers"),
    ],
    ids=["codes", "bytes", "deep", "objects", "text", "long", "empty"],
)
def test_an_errors_body_is_shown_as_printable_text(body: bytes, says: str, tmp_path: Path, console: Console):
    with judge_server(lambda request, number: Reply(body, 400)) as server, pytest.raises(InputError) as caught:
        ask_endpoint(ASKS[:1], config_of(server.url, retries=0), tmp_path, console)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_prompts_go_nowhere_else(status: int, tmp_path: Path, console: Console):
    with judge_server(echo) as other:
        moved = Reply(b"", status, {"Location": f"{other.url}/chat/completions"})
        with judge_server(lambda request, number: moved) as server, pytest.raises(InputError) as caught:
            ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert f"answers with status {status}, which leads to another address" in str(caught.value)
    assert other.requests == []
    assert len(server.requests) == 1


def _packed(body: bytes, encoding: str = "gzip") -> Reply:
    return Reply(gzip.compress(body), headers={"Content-Type": "application/json", "Content-Encoding": encoding})


@pytest.mark.parametrize(
    ("reply", "says"),
    [
        (completion("x" * 1_200_000), "sends an answer of more than 1,114,112 bytes"),
        (_packed(b" " * 200_000_000), "sends an answer of more than 1,114,112 bytes"),
        (_packed(b"{}", "br"), "sends an answer in the encoding 'br', which it was not asked for"),
        (_packed(b"{}", "gzip, gzip"), "sends an answer in the encoding 'gzip, gzip'"),
        (Reply(b"no gzip", headers={"Content-Encoding": "gzip"}), "sends an answer that is no gzip"),
    ],
    ids=["long", "bomb", "br", "twice", "damaged"],
)
def test_an_answer_is_read_up_to_a_limit(reply: Reply, says: str, tmp_path: Path, console: Console):
    with judge_server(lambda request, number: reply) as server, pytest.raises(InputError, match=says):
        ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    # The next attempt would be no shorter.
    assert len(server.requests) == 1
    assert server.requests[0].headers["accept-encoding"] == "identity"


def test_an_answer_may_be_packed(tmp_path: Path, console: Console):
    with judge_server(lambda request, number: _packed(completion("[[A]]").body)) as server:
        assert ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)[0][0].text == "[[A]]"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 500 no\r\nContent-Length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: ",
        b"",
    ],
    ids=["body", "chunks", "error", "header", "nothing"],
)
def test_an_answer_without_end_is_not_waited_for(head: bytes, tmp_path: Path, console: Console):
    dripped = b"1\r\n \r\n" if b"chunked" in head else b" "
    over = threading.Event()

    def drip(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(65536)
            connection.sendall(head)
            while head and not over.wait(0.05):
                connection.sendall(dripped)
            over.wait(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip, args=(listener,))
        thread.start()
        url, begun = f"http://127.0.0.1:{listener.getsockname()[1]}/v1", time.monotonic()
        try:
            with pytest.raises(InputError, match=r"did not answer within 0\.5 seconds"):
                ask_endpoint(ASKS[:1], config_of(url, retries=0, timeout=0.5), tmp_path, console)
            assert time.monotonic() - begun < 5
        finally:
            over.set()
            thread.join()


def test_waiting_for_a_turn_is_not_waiting_for_an_answer(tmp_path: Path, console: Console):
    with judge_server(echo) as server:
        config = config_of(server.url, requests_per_minute=60, timeout=0.5, retries=0)
        assert len(ask_endpoint(ASKS[:2], config, tmp_path, console)[0]) == 2


@pytest.mark.parametrize(
    "wait", ["1000000000", "1e400", "nan", "inf", "-5", "x" * 3000, "Fri, 31 Dec 9999 23:59:59 GMT"]
)
def test_no_wait_is_longer_than_two_minutes(wait: str, tmp_path: Path, console: Console):
    def full_once(request: Request, number: int) -> Reply:
        return failure(429, "full", Retry_After=wait) if number == 0 else echo(request, number)

    begun = time.monotonic()
    with judge_server(full_once) as server, contextlib.suppress(InputError):
        ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("count", [-1, True, 1.5, "7", 2**31, 10**400, [1], None])
def test_counts_that_are_none_are_not_counted(count: object, tmp_path: Path, console: Console):
    body = json.dumps({
        "choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": count, "completion_tokens": 1}
    }).encode()  # fmt: skip
    with judge_server(lambda request, number: Reply(body)) as server:
        _, spent = ask_endpoint(ASKS[:1], config_of(server.url), tmp_path, console)
    assert (spent.prompt_tokens, spent.completion_tokens, spent.uncounted) == (0, 1, 1)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{KEY}@127.0.0.1/v1",
        f"{KEY}@127.0.0.1/v1",
        f"http://127.0.0.1/v1?key={KEY}",
        f"http://127.0.0.1/v1#{KEY}",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_shown(url: str, tmp_path: Path, console: Console):
    with pytest.raises(InputError, match=r'url holds a user name, a "\?" or a "#"') as caught:
        ask_endpoint(ASKS[:1], config_of(url), tmp_path, console)
    assert KEY not in str(caught.value)
