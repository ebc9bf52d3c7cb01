"""A bank of adapters behind a server."""

import dataclasses
from collections.abc import Callable, Iterator

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.peft.adapter import Options
from aligner_jax.peft.artifact import Artifact
from aligner_jax.peft.bank import Bank
from aligner_jax.peft.stored import StoredAdapter


class BankAdapters:
    """The adapters of a bank, see `adapters.Adapters`."""

    def __init__(self, bank: Bank) -> None:
        self._bank = bank

    def names(self) -> Iterator[str]:
        """Yields the names, in order."""
        return self._bank.names()

    def kinds(self) -> list[tuple[str, Options]]:
        """Returns methods and options of the adapters, each once."""
        return self._bank.kinds()

    def get(self, name: str) -> StoredAdapter:
        """Returns an adapter. Raises KeyError if there is none of that name, InputError if it cannot be used."""
        adapter = self._known(name, self._bank.get)
        # Read here, so that damaged numbers end one request and not the engine.
        arrays = adapter.read()
        return dataclasses.replace(adapter, read=lambda: arrays)

    def prompt_format(self, name: str) -> PromptFormat | None:
        """Returns the prompt format that an adapter records; errors are those of `get`."""
        return self._known(name, self._bank.prompt_format)

    def register(self, name: str, artifact: Artifact, content: bytes) -> None:
        """Adds an adapter or replaces it. Raises InputError if it cannot be written."""
        self._bank.register(name, artifact.adapter, metadata=artifact.metadata)

    def delete(self, name: str) -> None:
        """Removes an adapter. Raises KeyError if there is none of that name."""
        self._known(name, self._bank.delete)

    def _known[T](self, name: str, action: Callable[[str], T]) -> T:
        try:
            return action(name)
        except InputError:
            if name not in self._bank:
                raise KeyError(name) from None
            raise
