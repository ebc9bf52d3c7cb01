"""Append-only JSON-lines file of the documents that an evaluation has finished, from which it resumes."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists, open_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import parse_object
from aligner_jax.runtime.files import reason

_HEADER = "made_from"
_BEGINNING = f'{{"{_HEADER}": '.encode()


class ResultStore:
    """Finished documents by key, in a file. The first line is a header with everything that the documents depend on.

    A killed process may leave an incomplete last line, which the next process removes.
    """

    def __init__(self, path: Path, made_from: Mapping[str, Any]) -> None:
        """Reads the file at `path`, if it exists.

        Args:
          path: JSON-lines file.
          made_from: everything that the documents depend on: JSON values, by names that error messages quote.

        Raises:
          InputError: the file's header differs from `made_from`, or the file is damaged or cannot be read. Names the
            file and the line.
        """
        self._path, self._made_from = path, json.loads(json.dumps(made_from))
        self._documents: dict[str, Any] = {}
        try:
            content = b""
            if exists(path):
                with open_file(path) as file:
                    content = file.read(os.fstat(file.fileno()).st_size)
            whole = content[: content.rfind(b"\n") + 1]
            torn = content[len(whole) :]
            for number, line in enumerate(whole.split(b"\n")[:-1], 1):
                self._take(line, number)
            # A file is truncated only if it is known to be an evaluation's.
            if torn and not whole and torn[: len(_BEGINNING)] != _BEGINNING[: len(torn)]:
                raise self._strange(1)
            if torn:
                os.truncate(path, len(whole))
        except OSError as error:
            raise InputError(f"{path} cannot be read: {reason(error)}") from error
        self._is_new = not whole

    def _strange(self, number: int) -> InputError:
        return InputError(
            f"{self._path}:{number} is not a line that an evaluation writes; remove the file to begin anew"
        )

    def _take(self, line: bytes, number: int) -> None:
        where = f"{self._path}:{number}"
        try:
            # Older versions wrote lone surrogates of answers unescaped.
            record = Fields(parse_object(line.decode(errors="surrogatepass"), where), where)
            if number > 1:
                self._documents[record.text("key")] = record.values["value"]
                return
            header = record.section(_HEADER)
        except (ValueError, KeyError):
            raise self._strange(number) from None
        if header is None:
            raise self._strange(number)
        was = header.values
        different = [name for name in {**was, **self._made_from} if was.get(name) != self._made_from.get(name)]
        if different:
            raise InputError(
                f"{self._path} was made with another {' and another '.join(different)}; give another folder (--out=DIR)"
            )

    def __contains__(self, key: str) -> bool:
        return key in self._documents

    def __getitem__(self, key: str) -> Any:
        return self._documents[key]

    def __len__(self) -> int:
        return len(self._documents)

    def add(self, documents: Mapping[str, Any]) -> None:
        """Appends finished documents to the file and flushes them to disk.

        Args:
          documents: JSON values by key.

        Raises:
          InputError: the file cannot be written.
        """
        lines = [{"key": key, "value": value} for key, value in documents.items()]
        if self._is_new:
            lines.insert(0, {_HEADER: self._made_from})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(text.encode(errors="backslashreplace"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {reason(error)}") from error
        self._is_new = False
        # The round trip through JSON gives the values that a resumed process reads.
        self._documents |= json.loads(json.dumps(dict(documents)))
