"""Replies of a judge's endpoint: bodies of answers and errors, and cached answers."""

import json
import random
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_client import read_completion
from aligner_jax.evals.judge_endpoint import JudgeCache
from aligner_jax.evals.judge_prompts import PAIRWISE, SAFETY
from aligner_jax.runtime.openai_client import read_error
from scripts.damage.kinds.kind import Files, Kind
from scripts.damage.kinds.mutations import of_bytes, of_json, one_file

_KEY = "sk-0123456789abcdef"


def samples() -> list[Files]:
    """Returns a completion, an error that repeats the key, and a cached answer."""
    completion = {
        "id": "x", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Because. [[A]]"}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
    }  # fmt: skip
    error = {"error": {"message": f"wrong key {_KEY}", "type": "invalid_request_error", "param": None, "code": 401}}
    kept = {"text": "Because. [[safe]]", "prompt_tokens": 12, "completion_tokens": None}
    return [{"completion.json": json.dumps(completion).encode(), "error.json": json.dumps(error).encode(),
             "k.json": json.dumps(kept).encode()}]  # fmt: skip


def mutate(rng: random.Random, files: Files) -> Files:
    """Changes one of the three: a value, its bytes, or an answer's text."""
    name = rng.choice(sorted(files))
    if rng.randrange(4):
        return one_file(rng, dict(files), of_json if rng.randrange(3) else of_bytes, name)
    said = rng.choice(
        (_KEY * 3, "[[A]] [[B]]", "<think>[[A]]", "\x1b[2J", "[[" * 20_000, "[[ " + " " * 50_000, "\ud800")
    )
    return {**files, name: files[name].replace(b"Because", json.dumps(said)[1:-1].encode())}


def read(folder: Path) -> str:
    """Returns the parsed result of the three. Fails if the key or a control character passes through."""
    answer = read_completion((folder / "completion.json").read_bytes(), _KEY)
    said = read_error((folder / "error.json").read_bytes(), _KEY)
    assert said.isprintable() and len(said) <= 220 and _KEY not in said, said  # noqa: PT018
    assert answer is None or _KEY not in answer.text, answer
    if answer is None:
        raise InputError("it is no completion")
    kept = JudgeCache(folder).get("k")
    assert kept is not None
    return repr((answer, said, kept, PAIRWISE.read_verdict(answer.text), SAFETY.read_verdict(kept.text)))


def may_differ(sample: Files, damaged: Files) -> bool:
    """Returns True: an answer has no checksum."""
    return True


KIND = Kind("judge", samples, mutate, read, may_differ)
