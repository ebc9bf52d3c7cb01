"""A judge's answers on disk, each kept as it arrives, so that nothing is asked and paid for twice."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.files.fields import read_fields
from aligner_jax.runtime.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a judge wrote, and the tokens that it took; None where the endpoint does not count them."""

    text: str
    prompt_tokens: int | None
    completion_tokens: int | None


class JudgeCache:
    """A folder with a small file an answer, named by a hash of the request, which holds none of the request's text."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @staticmethod
    def key(request: Mapping[str, object]) -> str:
        """The name of a request: all that its answer depends on, the endpoint's address included."""
        return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:40]

    def get(self, key: str) -> Answer | None:
        """The kept answer; None: there is none. Raises InputError where its file is damaged."""
        path = self._path(key)
        if not exists(path):
            return None
        try:
            kept = read_fields(path)
            text = kept.text("text")
            tokens = [
                kept.integer(name, least=0) if kept.has(name) else None
                for name in ("prompt_tokens", "completion_tokens")
            ]
        except InputError as error:
            raise InputError(
                f"{path} is not a judge's answer as it was kept ({error}); remove it to have it asked anew"
            ) from None
        return Answer(text, *tokens)

    def keep(self, key: str, answer: Answer) -> None:
        """Puts an answer on disk, whole or not at all. Raises InputError."""
        write_atomically(self._path(key), json.dumps(dataclasses.asdict(answer)) + "\n")

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
