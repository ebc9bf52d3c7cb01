"""Clients that are slow, wrong, too many, or go away; keys, and the end of the server."""

import socket
import threading
import time

import openai
import pytest
from running_server import SIZES, Running, http_request, read_responses, running

from aligner_jax.decoding.engine import Engine
from aligner_jax.errors import InputError
from aligner_jax.serving.engine_thread import EngineThread
from aligner_jax.serving.gate import read_keys
from aligner_jax.serving.limits import Limits

LONG = {"model": "A", "prompt": "Why is the sky", "max_tokens": 110, "temperature": 8.0, "seed": 1, "logit_bias": {}}
SHORT = {"model": "A", "prompt": "Why", "max_tokens": 2}
COMPLETIONS = "/v1/completions"


@pytest.fixture
def folder(write_adapters, tmp_path):
    return write_adapters(tmp_path / "adapters")


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch):
    """Makes turns of engines take at least 50 ms."""
    turn = Engine.turn

    def slow(self):
        time.sleep(0.05)
        return turn(self)

    monkeypatch.setattr(Engine, "turn", slow)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def status_of(server: Running, path: str) -> int:
    with server.connect() as connection:
        connection.sendall(http_request(path, method="GET"))
        return int(connection.recv(20).split()[1])


@pytest.mark.parametrize(
    "content",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 2**17 + b"\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused(content: bytes, server):
    with server.connect() as connection:
        connection.sendall(content)
        ((status, body),) = read_responses(connection)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")
        assert is_closed(connection)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"nul", b'"\xff"', b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":' + b"[" * 200 + b"]" * 200 + b"}"
    ],
    ids=range(8),
)  # fmt: skip
def test_what_is_not_json_is_refused(body: bytes, server):
    with server.connect() as connection:
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        ((status, found),) = read_responses(connection)
    assert (status, "the body" in found["error"]["message"]) == (400, True)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(base, folder):
    with running(base, folder, limits=Limits(body_bytes=1000)) as server:
        with server.connect() as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n")
            connection.sendall(b"expect: 100-continue\r\n\r\n")
            ((status, body),) = read_responses(connection)
            assert (status, body["error"]["code"]) == (413, "request_too_large")
            assert is_closed(connection)
        with server.connect() as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            connection.sendall(b"3e9\r\n" + b"x" * 1001 + b"\r\n0\r\n\r\n")
            assert read_responses(connection)[0][0] == 413
        with server.client() as client, pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="A", prompt="x" * 100_000)
        assert caught.value.status_code == 413


def test_clients_that_send_slowly_are_cut_off(base, folder):
    with running(base, folder, limits=Limits(header_seconds=0.5, body_seconds=0.5)) as server:
        silent, in_headers, in_body = server.connect(), server.connect(), server.connect()
        with silent, in_headers, in_body:
            in_headers.sendall(b"POST /v1/completions HTTP/1.1\r\n")
            in_body.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            for _ in range(3):
                time.sleep(0.1)
                in_headers.sendall(b"x: y\r\n")
                in_body.sendall(b" ")
            assert read_responses(in_body)[0][0] == 408
            assert is_closed(in_body)
            assert is_closed(silent)
            assert is_closed(in_headers)


def test_a_client_that_reads_nothing_is_cut_off(base, folder):
    with running(base, folder, limits=Limits(write_seconds=0.3)) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        requests, deadline = http_request("/metrics", method="GET") * 100, time.monotonic() + 20

        def ask_on() -> None:
            while time.monotonic() < deadline:
                connection.sendall(requests)

        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            ask_on()


def test_a_connection_that_is_idle_is_closed_and_one_that_streams_is_not(base, folder, slowly):
    with running(base, folder, limits=Limits(header_seconds=0.4)) as server, server.connect() as connection:
        begun = time.monotonic()
        connection.sendall(http_request(COMPLETIONS, {**LONG, "max_tokens": 60}))
        assert read_responses(connection)[0][0] == 200
        assert time.monotonic() - begun > 0.8
        assert is_closed(connection)


def test_pipelined_requests_are_answered_in_order(server):
    models = ["A", "B", "nothing", "tiny", "A"]
    with server.connect() as connection:
        requests = (http_request(COMPLETIONS, {**SHORT, "model": model}) for model in models)
        connection.sendall(b"".join(requests))
        found = read_responses(connection, len(models))
    assert [status for status, _ in found] == [200, 200, 404, 200, 200]
    assert [body.get("model") for _, body in found] == ["A", "B", None, "tiny", "A"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_its_rows(stream: bool, n: int, base, folder, slowly):
    with running(base, folder) as server:
        engine = server.service.engine.engine
        # Compiled first.
        with server.client() as client:
            client.completions.create(**SHORT)
        with server.connect() as connection:
            connection.sendall(http_request(COMPLETIONS, {**LONG, "n": n, "stream": stream}))
            if stream:
                connection.recv(1)
            deadline = time.monotonic() + 20
            while engine.num_running < n and time.monotonic() < deadline:
                time.sleep(0.005)
            assert engine.num_running == n
        begun = time.monotonic()
        assert server.becomes_idle()
        # All tokens would take 110 / 2 turns.
        assert time.monotonic() - begun < 10 * 0.05
        assert b"aligner_cancelled_total 1.0" in server.service.metrics.text()


def test_a_waiting_request_of_a_client_that_goes_away_is_forgotten(base, folder, slowly):
    with running(base, folder, rows=1) as server:
        engine = server.service.engine
        with server.connect() as first:
            first.sendall(http_request(COMPLETIONS, {**LONG, "stream": True}))
            first.recv(1)
            with server.connect() as second:
                second.sendall(http_request(COMPLETIONS, LONG))
                deadline = time.monotonic() + 10
                while not engine.num_waiting and time.monotonic() < deadline:
                    time.sleep(0.005)
                assert engine.num_waiting == 1
            while engine.num_waiting and time.monotonic() < deadline:
                time.sleep(0.005)
            assert engine.num_waiting == 0
            assert engine.engine.num_running == 1


def test_too_much_work_is_refused_with_429(base, folder, slowly):
    with running(base, folder, rows=1, limits=Limits(queue=1)) as server, server.client() as client:
        # Compiled first, which takes long.
        client.completions.create(**SHORT)
        server.service.limits = Limits(queue=1, queue_seconds=0.5)
        stream = client.completions.create(**LONG, stream=True)
        failures = []

        def ask() -> None:
            try:
                client.completions.create(**SHORT)
            except openai.RateLimitError as error:
                failures.append(error)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        # One waited, in vain; the others were refused.
        assert len(failures) == 5
        assert sum("waited too long" in failure.message for failure in failures) == 1
        assert all(int(failure.response.headers["retry-after"]) >= 1 for failure in failures)
        assert all(failure.code == "rate_limit_exceeded" for failure in failures)
        assert len(list(stream)) > 10
        client.completions.create(**SHORT)


def test_a_request_that_could_never_have_its_rows_is_wrong(base, folder):
    with running(base, folder, rows=2, limits=Limits(queue=1)) as server, server.client() as client:
        with pytest.raises(openai.BadRequestError, match="the 3 choices that may run and wait at once") as caught:
            client.completions.create(**SHORT, n=4)
        assert caught.value.param == "n"
        assert len(client.completions.create(**SHORT, n=3).choices) == 3


def test_too_many_requests_at_once_are_refused_but_health_is_told(base, folder, slowly):
    with running(base, folder, limits=Limits(requests=1)) as server, server.client() as client:
        stream = client.completions.create(**LONG, stream=True)
        with pytest.raises(openai.RateLimitError):
            client.completions.create(**SHORT)
        for path in ("/health", "/ready"):
            assert status_of(server, path) == 200
        list(stream)
        client.completions.create(**SHORT)


def test_keys_are_needed_and_not_shown(base, folder, capfd):
    keys = (b"first-key-of-all", b"second-key-of-all")
    with running(base, folder, keys=keys) as server:
        for key in keys:
            with server.client(key.decode()) as client:
                client.completions.create(**SHORT)
        for key in ("third-key", "first-key-of-al", "first-key-of-all2", "x" * 1000):
            with server.client(key) as client, pytest.raises(openai.AuthenticationError) as caught:
                client.completions.create(**SHORT)
            assert caught.value.code == "invalid_api_key"
        for headers in ({}, {"authorization": "first-key-of-all"}, {"authorization": "Basic first-key-of-all"}):
            with server.connect() as connection:
                connection.sendall(http_request("/metrics", method="GET", **headers))
                assert read_responses(connection)[0][0] == 401
        assert status_of(server, "/health") == 200
    shown = capfd.readouterr()
    assert "key-of-all" not in shown.out + shown.err


def test_a_file_of_keys(tmp_path):
    file = tmp_path / "keys"
    file.write_text("one-long-key\n\n  another-key  \n")
    assert read_keys(file) == (b"one-long-key", b"another-key")
    for content in ("", "\n", "short\n"):
        file.write_text(content)
        with pytest.raises(InputError, match="a key of at least 8 characters"):
            read_keys(file)


def test_a_server_that_stops_lets_requests_end(base, folder, slowly):
    with running(base, folder) as server, server.client() as client:
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        server.server.drain()
        assert len(list(stream)) > 10
        server.thread.join(timeout=20)
        assert not server.thread.is_alive()
        with server.client() as late, pytest.raises(openai.APIConnectionError):
            late.completions.create(**SHORT)


def test_a_warm_up_ends_with_the_server(base, monkeypatch: pytest.MonkeyPatch):
    engine = Engine(base.params, base.config, SIZES)
    thread, asked = EngineThread(engine, 1), []

    def run(requests):
        asked.extend(requests)
        # Told to stop while the first program compiles.
        threading.Thread(target=thread.stop).start()
        while not thread._stops:
            time.sleep(0.001)
        return iter(())

    monkeypatch.setattr(engine, "run", run)
    thread.start()
    thread._thread.join(timeout=20)
    assert (thread._thread.is_alive(), len(asked), thread.is_ready) == (False, 1, False)
    assert isinstance(thread.failure, RuntimeError)


def test_the_grace_period_ends(base, folder, slowly):
    with running(base, folder, limits=Limits(grace_seconds=1)) as server, server.connect() as connection:
        connection.sendall(http_request(COMPLETIONS, {**LONG, "n": 4, "stream": True}))
        connection.recv(1)
        begun = time.monotonic()
        server.server.drain()
        server.thread.join(timeout=20)
        assert 0.9 < time.monotonic() - begun < 2.2
        assert server.becomes_idle()


def test_an_engine_that_fails_is_told(base, folder, monkeypatch, capfd, slowly):
    with running(base, folder) as server, server.client() as client:
        stream = client.completions.create(**LONG, stream=True)
        next(iter(stream))
        monkeypatch.setattr(server.service.engine.engine, "turn", lambda: 1 / 0)
        with pytest.raises(openai.APIError, match="the engine has failed"):
            list(stream)
        with pytest.raises(openai.InternalServerError, match="the engine has failed") as caught:
            client.completions.create(**SHORT)
        assert caught.value.body["type"] == "server_error"
        assert (status_of(server, "/health"), status_of(server, "/ready")) == (500, 503)
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_metrics_count(base, folder):
    with running(base, folder) as server, server.client() as client:
        for model in ("A", "A", "B", "tiny"):
            client.completions.create(**{**SHORT, "model": model})
        with pytest.raises(openai.NotFoundError):
            client.completions.create(**{**SHORT, "model": "no"})
        text = server.service.metrics.text().decode()
        assert status_of(server, "/metrics") == 200
    for line in (
        "aligner_time_to_first_token_seconds_count 4.0",
        "aligner_generated_tokens_total 8.0",
        "aligner_bank_hits_total 1.0",
        "aligner_bank_misses_total 2.0",
        "aligner_rows 4.0",
        "aligner_running 0.0",
        "aligner_waiting 0.0",
        'aligner_responses_total{path="/v1/completions",status="200"} 4.0',
        'aligner_responses_total{path="/v1/completions",status="404"} 1.0',
    ):
        assert line in text.splitlines()
