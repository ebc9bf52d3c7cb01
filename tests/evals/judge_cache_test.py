from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.judge_client import Answer
from aligner_jax.evals.judge_endpoint import JudgeCache


def test_an_answer_is_kept_under_all_of_its_request(tmp_path: Path):
    cache = JudgeCache(tmp_path / "cache")
    key = cache.key({"model": "m", "messages": [{"content": "secret"}]})
    assert cache.get(key) is None
    cache.keep(key, Answer("[[A]] é", 3, None))
    assert JudgeCache(tmp_path / "cache").get(key) == Answer("[[A]] é", 3, None)
    assert key == cache.key({"messages": [{"content": "secret"}], "model": "m"})
    assert key != cache.key({"model": "m", "messages": [{"content": "Secret"}]})
    assert len({cache.key({"model": str(number)}) for number in range(1000)}) == 1000
    (file,) = cache.folder.iterdir()
    assert "secret" not in file.read_text()


@pytest.mark.parametrize(
    "content",
    [
        *("", "{", "[]", "{}", "\xff"),
        '{"text": 1, "prompt_tokens": 1, "completion_tokens": 1}',
        '{"text": "x", "prompt_tokens": "1", "completion_tokens": 1}',
        '{"text": "x", "prompt_tokens": 1, "completion_tokens": 1.5}',
        '{"text": "x", "prompt_tokens": true, "completion_tokens": 1}',
        '{"text": "x", "prompt_tokens": -1, "completion_tokens": 1}',
        '{"text": "x", "text": "y", "prompt_tokens": 1, "completion_tokens": 1}',
        "[" * 100_000,
        '{"text": ' + "9" * 5000 + "}",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str):
    (tmp_path / "abc.json").write_text(content)
    with pytest.raises(InputError, match=r"abc\.json is not a judge's answer as it was kept"):
        JudgeCache(tmp_path).get("abc")
