"""The command chat: in a terminal, with pipes, and with a server."""

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax.numpy as jnp
import places
import pytest
from command_runs import run_command
from event_server import Asked, Stream, answer, event, event_server
from pty_runs import terminal

from aligner_jax.chatting.local import LocalModel, LocalOptions
from aligner_jax.chatting.mix import Mix, parse_mix
from aligner_jax.chatting.model import Question
from aligner_jax.decoding.choose import Sampling
from aligner_jax.errors import printable
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import save_adapter
from aligner_jax.weights.base import load_base
from scripts.lib.tiny_llama import write_tiny_llama

KEY = "sk-loopback-0123456789"
ENVIRONMENT = {**os.environ, "PYTHONPATH": places.PYTHONPATH, "NO_PROXY": "127.0.0.1", "LC_ALL": "C.UTF-8"}
NEW = 300
PROMPTED, ACCEPTED = "\x1b[?2004h", "\x1b[?2004l"
"""Written before a line is edited, and after it: pasted lines are marked in between."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base with two adapters."""
    folder = tmp_path_factory.mktemp("chat")
    write_tiny_llama(folder / "tiny")
    base = load_base(folder / "tiny")
    for key, name in enumerate(("first", "second")):
        adapter = init_adapter("aligner", base.config, key, start_layer=0)
        adapter = adapter.replace(trainable={**adapter.trainable, "gates_ln": jnp.full((4, 4), 2.0)})
        file = folder / f"{name}.safetensors"
        save_adapter(adapter, file, base, prompt_format={"template": "chat", "system": "Be brief."})
    return folder


def arguments(folder: Path, new: int) -> list[str]:
    adapters = [f"--adapter={folder / name}.safetensors" for name in ("first", "second")]
    return [f"--base={folder / 'tiny'}", *adapters, "--dtype=float32", "--temperature=20", f"--max_new_tokens={new}"]


@pytest.fixture(scope="module")
def answers(folder: Path) -> Callable[..., list[str]]:
    """Returns the answers to questions of a new chat, each with its adapters."""

    def find(new: int, *asked: tuple[str, str]) -> list[str]:
        options = LocalOptions(template="auto", context=512, max_new_tokens=new, sampling=Sampling(20.0))
        model, turns = LocalModel(load_base(folder / "tiny"), options), []
        for name in ("first", "second"):
            model.find(str(folder / f"{name}.safetensors"))
        for text, names in asked:
            turns.append({"role": "user", "content": text})
            mix = parse_mix(names) if names else Mix()
            pieces = model.answers(Question(turns), [mix], lambda sentence: None)
            turns.append({"role": "assistant", "content": "".join(piece.text for piece in pieces).strip()})
        return [turn["content"] for turn in turns[1::2]]

    return find


def piped(*arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "aligner_jax.chat", *arguments], env=ENVIRONMENT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_without_a_terminal_a_line_has_an_answer(folder: Path, answers, tmp_path: Path):
    lines = ["What is it?", "/adapter none", "", "/nothing", "Why?", "/sum first@0.5 second", "And \xff?", "So?"]
    process = piped(*arguments(folder, 12))
    assert process.stdin is not None
    assert process.stdout is not None
    expected = answers(12, ("What is it?", "first"), ("Why?", ""), ("So?", "first@0.5 second"))
    process.stdin.write(f"{lines[0]}\n".encode())
    process.stdin.flush()
    # The first answer comes while stdin is open. An answer may have several lines.
    begun = b""
    while (missing := len(expected[0].encode()) - len(begun)) > 0:
        # `process.stdout.read` could read more into a buffer that `communicate` does not look at.
        begun += (part := os.read(process.stdout.fileno(), missing))
        assert part
    out, err = process.communicate("\n".join(lines[1:]).encode("latin-1"), timeout=120)
    stripped = "\n".join(line.rstrip() for line in (begun + out).decode().split("\n"))
    assert stripped == "".join(f"{text}\n" for text in expected)
    assert process.returncode == 0
    assert [line for line in err.decode().splitlines() if "cut off" not in line] == [
        "answers are those of base",
        "error: /nothing is no command; there are adapter, strength, sum, compare, system, reset, save, help, quit; "
        "begin a question with // if it begins with /",
        "answers are those of first@0.5+second",
        "error: the text holds half a surrogate pair at its character 5, as where bytes are not UTF-8",
    ]


def test_in_a_terminal_an_answer_is_stopped_and_the_chat_goes_on(folder: Path, answers, tmp_path: Path):
    (expected,) = answers(NEW, ("What is it?", "first"))
    with terminal("chat", *arguments(folder, NEW), state=tmp_path, columns=100) as chat:
        chat.until("first>")
        chat.press("What is it?\r")
        chat.until(printable(expected[:3]))
        chat.press("\x03")
        chat.until("stopped")
        chat.until("first>")
        for line, shown in [
            ("/strength 0.5", "first@0.5>"),
            ("/sum first@0.5 second", "first@0.5+second>"),
            ("/adapter third", "error: there is no adapter 'third'"),
            (f"/save {tmp_path / 'saved.jsonl'}", "messages are in"),
            ("/adapter second", "second>"),
        ]:
            chat.press(f"{line}\r")
            chat.until(shown)
        chat.press("\x04")
        assert chat.end() == 0
    question, kept = json.loads((tmp_path / "saved.jsonl").read_text())["messages"]
    assert question["content"] == "What is it?"
    assert expected.startswith(kept["content"])
    assert 0 < len(kept["content"]) < len(expected)


@pytest.fixture
def talk(tmp_path: Path) -> Callable:
    """Opens a terminal with a chat at a server that gives these replies."""

    def open_chat(server, *more: str):
        key = tmp_path / "key"
        key.write_text(f"{KEY}\n")
        return terminal(
            "chat", f"--url={server.url}", "--model=base", f"--api_key_file={key}", *more, state=tmp_path
        )  # fmt: skip

    return open_chat


def says(text: str) -> Callable[[Asked], Stream]:
    """Replies with the name of the model, the last message and a text."""
    return lambda asked: answer(f"{asked.body['model']} heard ", asked.body["messages"][-1]["content"], text)


def test_a_terminal_is_safe_from_what_a_server_sends(talk: Callable):
    with (
        event_server(says(" \x1b[2J\x1b]0;owned\x07\u202e.\r")) as server,
        talk(server, "--adapter=\x1b]0;name\x07") as chat,
    ):
        chat.until("\\x1b]0;name\\x07>")
        chat.press("/adapter none\r")
        chat.until("base>")
        chat.press("me\r")
        chat.until("base heard me \\x1b[2J\\x1b]0;owned\\x07\\u202e.\\r\r\n")
        assert b"\x1b[2J" not in chat.screen
        assert b"\x1b]0" not in chat.screen
        assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


def test_answers_are_compared_side_by_side(talk: Callable):
    with event_server(says("!")) as server, talk(server, "--adapter=ours") as chat:
        chat.until("ours>")
        chat.press("/compare Why?\r")
        chat.until(ACCEPTED)
        shown = chat.until(PROMPTED).splitlines()
        assert any(line.count("base heard Why?!") == line.count("ours heard Why?!") == 1 for line in shown), shown


def test_lines_are_edited_and_remembered(talk: Callable, tmp_path: Path):
    with event_server(says("!")) as server:
        with talk(server) as chat:
            chat.until("base>")
            # Left twice, then a letter in the middle.
            chat.press("oe\x1b[D\x1b[Dn\r")
            chat.until("base heard noe!")
            chat.until("base>")
            # Ctrl-C at the prompt only clears the line.
            chat.press("half a line\x03")
            chat.until("base>")
            chat.press("/quit\r")
            assert chat.end() == 0
        file = tmp_path / "aligner_jax" / "chat_history"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        with talk(server) as chat:
            chat.until("base>")
            chat.press("\x1b[A\x1b[A\r")
            chat.until("base heard noe!")
            chat.until("base>")
            chat.press("/ada\t")
            chat.until("pter")
            chat.press(" ours\r")
            chat.until("ours>")
    assert [asked.body["messages"][-1]["content"] for asked in server.asked] == ["noe", "noe"]


def test_ctrl_c_hangs_up_and_an_error_keeps_the_chat(talk: Callable):
    def reply(asked: Asked) -> Stream:
        text = asked.body["messages"][-1]["content"]
        if text == "fail":
            return Stream(iter([b'{"error": {"message": "no such model"}}']), 404)
        return answer("fine") if text != "endless" else Stream(ticks())

    def ticks() -> Iterator[bytes]:
        for number in itertools.count():
            yield event(f"tick{number} ")
            time.sleep(0.02)

    with event_server(reply) as server, talk(server) as chat:
        for text, shown in [("fail", f"error: {server.url} answers with status 404: no such model"), ("go", "fine")]:
            chat.until("base>")
            chat.press(f"{text}\r")
            # The terminal's width breaks the sentence.
            assert shown in chat.until(shown.split()[-1]).replace("\n", " ")
        chat.until("base>")
        chat.press("endless\r")
        chat.until("tick3")
        chat.press("\x03")
        chat.until("stopped")
        assert server.hung_up.wait(30)
        chat.until("base>")
        chat.press("on\r")
        chat.until("fine")
    contents = [message["content"] for message in server.asked[-1].body["messages"]]
    assert (contents[:2], contents[2], contents[-1]) == (["go", "fine"], "endless", "on")
    assert contents[3].startswith("tick0 tick1 tick2 tick3")


def test_without_a_terminal_an_interrupt_ends_the_command():
    def waits() -> Iterator[bytes]:
        yield event("begun")
        time.sleep(20)

    with event_server(lambda asked: Stream(waits())) as server:
        process = piped(f"--url={server.url}", "--model=base")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Why?\n")
        process.stdin.flush()
        assert process.stdout.read(5) == b"begun"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, b"\n", b"\ninterrupted\n")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([], "give a base or a server: --base=PATH, or --url=http://… --model=NAME"),
        (["--base=a", "--url=http://b"], "give a base or a server: --base=PATH, or --url=http://… --model=NAME"),
        (["--base=a", "--model=b"], "--model is of --url, and the base is here"),
        (["--url=http://b"], "give the name of the base at the server: --model=NAME"),
        (["--url=b", "--model=c"], "--url is 'b', but should begin with http:// or https://"),
        (["--url=http://b", "--model=c", "--top_p=0"], "top_p is 0.0, but must be above 0 and at most 1"),
        (["--url=http://b", "--model=c", "--api_key_file=KEY"], "KEY should hold one line with the API key, and "),
        (["--base=TINY", "--context=8", "--max_new_tokens=8"], "--context is 8 and --max_new_tokens 8, but the first"),
        (["--base=TINY", "--system=Be.", "--template=alpaca"], "--system is of the template chat, and the prompts'"),
    ],
)
def test_wrong_flags_are_one_sentence(given: list[str], sentence: str, folder: Path, tmp_path: Path):
    (tmp_path / "KEY").write_text(f"{KEY}\n{KEY}\n")
    replaced = [flag.replace("TINY", str(folder / "tiny")) for flag in given]
    ended = run_command("chat", *replaced, folder=tmp_path)
    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {sentence}")
    assert KEY not in ended.err
