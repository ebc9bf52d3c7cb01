"""Answers of servers: as streams of events, and in every way that a server can fail."""

import gzip
import itertools
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from event_server import Asked, Server, Stream, answer, event, event_server

from aligner_jax.chatting import endpoint
from aligner_jax.chatting.endpoint import EndpointModel, EndpointOptions
from aligner_jax.chatting.mix import Mix
from aligner_jax.chatting.model import Question
from aligner_jax.errors import InputError

KEY = "sk-loopback-0123456789"
ASKED = Question([{"role": "user", "content": "Why?"}])
SUM = Mix((("a", 0.5), ("b", 1.0)))


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def model_of(server: Server, **options) -> EndpointModel:
    return EndpointModel(EndpointOptions(url=server.url, model="base", **options))


def ask(model: EndpointModel, *mixes: Mix, question: Question = ASKED) -> tuple[list[str], list[str]]:
    texts, said = [""] * len(mixes), []
    for piece in model.answers(question, mixes, said.append):
        texts[piece.answer] += piece.text
    return texts, said


def failure(reply: Callable[[Asked], Stream], **options) -> str:
    """Returns the sentence of the failure, with URL in place of the server's."""
    with event_server(reply) as server, pytest.raises(InputError) as raised:
        ask(model_of(server, **options), Mix())
    assert KEY not in str(raised.value)
    return str(raised.value).replace(server.url, "URL")


def test_a_request_has_the_conversation_and_the_names_of_adapters():
    with event_server(lambda asked: answer("I ", "know", " é.")) as server:
        model = model_of(server, key=KEY, max_new_tokens=7, sampling={"temperature": 0.5})
        question = Question(ASKED.messages, "Be brief.")
        assert ask(model, Mix(), SUM, question=question) == (["I know é."] * 2, [])
    first, second = server.asked
    system = {"role": "system", "content": "Be brief."}
    assert first.path == "/v1/chat/completions"
    assert first.body == {
        "model": "base", "messages": [system, *ASKED.messages], "stream": True, "max_tokens": 7, "temperature": 0.5,
    }  # fmt: skip
    assert second.body == {**first.body, "model": "a@0.5+b"}
    assert first.headers["authorization"] == f"Bearer {KEY}"
    assert first.headers["accept-encoding"] == "identity"


def test_without_a_key_none_is_sent(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with event_server(lambda asked: answer("I")) as server:
        assert ask(model_of(server), Mix()) == (["I"], [])
    assert "authorization" not in server.asked[0].headers
    assert server.asked[0].body["messages"] == ASKED.messages


def test_pieces_come_before_the_answer_has_ended():
    goes_on = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield event("one")
        assert goes_on.wait(30)
        yield event(" two") + event(reason="stop")

    with event_server(lambda asked: Stream(pieces())) as server:
        found = model_of(server).answers(ASKED, [Mix()], print)
        assert next(found).text == "one"
        goes_on.set()
        assert [piece.text for piece in found] == [" two"]


def test_closing_an_answer_hangs_up():
    endless = (event("more ") for _ in itertools.count())
    with event_server(lambda asked: Stream(endless)) as server:
        found = model_of(server).answers(ASKED, [Mix()], print)
        next(found)
        found.close()
        assert server.hung_up.wait(30)


def test_events_are_read_however_they_are_cut():
    whole = b": hello\r\n\r\nevent: x\r\ndata:" + event("one\n é ")[5:].replace(b"\n", b"\r\n") + event("two", "length")
    with event_server(lambda asked: Stream(whole[i : i + 1] for i in range(len(whole)))) as server:
        assert ask(model_of(server), Mix()) == (["one\n é two"], ["the answer was cut off after 512 tokens"])


def test_an_error_has_the_servers_sentence_without_the_key():
    body = b'{"error": {"message": "There is no \\"x\\", says ' + KEY.encode() + b'"}}'
    refused = Stream(iter([body]), 404, {"Content-Type": "application/json"})
    assert failure(lambda asked: refused, key=KEY) == 'URL answers with status 404: There is no "x", says …'
    within = [event("one"), b'data: {"error": {"message": "out of memory, ' + KEY.encode() + b'"}}\n\n']
    assert failure(lambda asked: Stream(iter(within)), key=KEY) == "URL broke off its answer: out of memory, …"


def test_redirects_are_not_followed():
    with event_server(lambda asked: answer("I")) as other:
        moved = Stream(iter(()), 307, {"Location": f"{other.url}/chat/completions"})
        assert failure(lambda asked: moved, key=KEY) == (
            "URL answers with status 307, which leads to another address: give that as --url"
        )
    assert other.asked == []


@pytest.mark.parametrize(
    ("pieces", "sentence"),
    [
        ([], "URL broke off its answer"),
        ([event("one")], "URL broke off its answer"),
        ([b"data: {one}\n\n"], "URL sent an event that is no JSON"),
        ([b"data: \xff\n\n"], "URL sent an event that is no JSON"),
        ([b"data: " + b"[" * 100_000 + b"\n\n"], "URL sent an event that is no JSON"),
    ],
)
def test_a_broken_stream_is_one_sentence(pieces: list[bytes], sentence: str):
    assert failure(lambda asked: Stream(iter(pieces))) == sentence


def test_what_is_no_stream_of_events_is_refused():
    plain = Stream(iter([b"{}"]), 200, {"Content-Type": "application/json"})
    assert failure(lambda asked: plain) == "URL sends 'application/json' where it was asked for a stream of events"
    headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
    packed = Stream(iter([gzip.compress(event("one"))]), 200, headers)
    assert failure(lambda asked: packed) == "URL sends an answer in the encoding 'gzip', which it was not asked for"


def test_endless_answers_are_refused(monkeypatch: pytest.MonkeyPatch):
    def endless(piece: bytes) -> Callable[[Asked], Stream]:
        return lambda asked: Stream(piece for _ in itertools.count())

    assert "URL sends an answer of more than" in failure(endless(b"data: " + b"x" * 65536))
    monkeypatch.setattr(endpoint, "_BYTES_AT_LEAST", 5000)
    assert failure(endless(b": x\n" * 100), max_new_tokens=1) == "URL sends an answer of more than 9,096 bytes"
    monkeypatch.setattr(endpoint, "_SECONDS_A_TOKEN", 0.0)

    def dripping() -> Iterator[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b":\n"

    assert failure(lambda asked: Stream(dripping()), timeout=0.3) == "URL did not end its answer in time"


def test_an_endless_error_is_cut_off():
    body = (b"no " * 1000 for _ in itertools.count())
    assert failure(lambda asked: Stream(body, 500)).startswith("URL answers with status 500: no no no")


def test_silence_ends_an_answer():
    def silent() -> Iterator[bytes]:
        yield event("one")
        time.sleep(2)

    assert failure(lambda asked: Stream(silent()), timeout=0.2) == "URL sent nothing for 0.2 seconds"


def test_a_server_that_is_not_there_is_one_sentence():
    model = EndpointModel(EndpointOptions(url="http://127.0.0.1:9/v1", model="m"))
    with pytest.raises(InputError, match=r"^http://127\.0\.0\.1:9/v1 cannot be reached, or broke off: "):
        ask(model, Mix())
    with pytest.raises(InputError, match="cannot be reached, or broke off"):
        ask(EndpointModel(EndpointOptions(url="http://[", model="m")), Mix())


def test_names_are_the_servers():
    model = EndpointModel(EndpointOptions(url="http://127.0.0.1:9/v1", model="m"))
    assert [model.find(name) for name in ("b", "a", "b")] == ["b", "a", "b"]
    assert model.names() == ["b", "a"]
