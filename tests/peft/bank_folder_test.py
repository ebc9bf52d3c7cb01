"""A folder of adapter files has a bank's methods, and sees that files change."""

from pathlib import Path

import jax
import numpy as np
import pytest
from adapter_files import NamedBase

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import init_adapter
from aligner_jax.peft.artifact import load_adapter, save_adapter
from aligner_jax.peft.bank import Bank
from aligner_jax.peft.bank_folder import FolderBank, open_bank


@pytest.fixture
def base(config: LlamaConfig) -> NamedBase:
    return NamedBase(config)


@pytest.fixture
def folder(tmp_path: Path, base: NamedBase, trained_adapter) -> Path:
    save_adapter(trained_adapter(1), tmp_path / "one.safetensors", base)
    chat = {"template": "chat", "system": None}
    save_adapter(trained_adapter(3), tmp_path / "three.safetensors", base, prompt_format=chat)
    (tmp_path / "notes.txt").touch()
    return tmp_path


def refusal(function, *args: object, **more: object) -> str:
    with pytest.raises(InputError) as caught:
        function(*args, **more)
    return str(caught.value)


def test_files_are_adapters(folder: Path, base: NamedBase, trained_adapter):
    bank = open_bank(folder, base)
    assert isinstance(bank, FolderBank)
    assert (len(bank), list(bank.names()), "one" in bank, "two" in bank) == (2, ["one", "three"], True, False)
    assert [list(bank.names(after)) for after in ("one", "oz", "three")] == [["three"], ["three"], []]
    for name, tokens in (("one", 1), ("three", 3)):
        stored, wanted = bank.get(name), trained_adapter(tokens)
        assert (stored.method, stored.options) == (wanted.method, wanted.options)
        jax.tree.map(np.testing.assert_array_equal, dict(stored.read()), wanted.trainable)
    assert [options.num_tokens for _, options in bank.kinds()] == [1, 3]
    assert (bank.prompt_format("one"), bank.prompt_format("three")) == (None, PromptFormat("chat", None))
    assert bank.get("one").key == bank.get("one").key != bank.get("three").key
    for name in ("two", "../one", "\ud800", "notes.txt"):
        assert "has no adapter" in refusal(bank.get, name)
        assert "has no adapter" in refusal(bank.delete, name)


def test_a_file_that_changes_is_another_adapter(folder: Path, base: NamedBase, trained_adapter):
    bank = FolderBank(folder, base)
    old = bank.get("one")
    save_adapter(trained_adapter(1, key=9), folder / "one.safetensors", base)
    assert bank.get("one").key != old.key
    np.testing.assert_array_equal(bank.get("one").read()["tokens_pd"], trained_adapter(1, key=9).trainable["tokens_pd"])
    assert "was replaced while it was used" in refusal(old.read)
    bank.delete("one")
    assert ("one" in bank, list(bank.names())) == (False, ["three"])
    assert "has no adapter 'one'" in refusal(bank.get, "one")


def test_files_of_another_base_and_damaged_ones_are_refused(folder: Path, base: NamedBase, trained_adapter):
    save_adapter(trained_adapter(1), folder / "other.safetensors", base._replace(fingerprint="f" * 64))
    (folder / "cut.safetensors").write_bytes((folder / "one.safetensors").read_bytes()[:-3])
    bank = FolderBank(folder, base)
    assert "other weights" in refusal(bank.get, "other")
    assert str(folder / "cut.safetensors") in refusal(bank.get, "cut")
    (folder / "a+b.safetensors").touch()
    assert refusal(FolderBank, folder, base).startswith(f"{folder / 'a+b.safetensors'} needs another name")
    assert "a+b" not in list(bank.names())
    (folder.parent / "file.safetensors").touch()
    file = folder.parent / "file.safetensors"
    assert refusal(open_bank, file, base) == f"{file} is not a folder of adapters: give the folder that holds it"
    assert refusal(open_bank, folder / "none", base) == f"{folder / 'none'} is not a folder of adapters"


def test_what_is_registered_is_a_file(folder: Path, base: NamedBase, trained_adapter):
    bank, adapter = FolderBank(folder, base), trained_adapter(1, key=5)
    bank.register("new", adapter, metadata={"prompt_format": '{"template": "chat"}'})
    bank.register("one", adapter)
    for name in ("new", "one"):
        jax.tree.map(np.testing.assert_array_equal, dict(bank.get(name).read()), adapter.trainable)
        assert load_adapter(folder / f"{name}.safetensors", base).options == adapter.options
    assert bank.prompt_format("new") == PromptFormat("chat", None)
    assert "cannot be the name" in refusal(bank.register, "a+b", adapter)
    assert "another base" in refusal(bank.register, "b", adapter, metadata={"base_fingerprint": "f" * 64})
    assert "is not JSON" in refusal(bank.register, "b", adapter, metadata={"prompt_format": "chat"})
    assert "'prompt'" in refusal(bank.register, "b", init_adapter("prompt", base.config))
    infinite = jax.tree.map(lambda x: x * np.inf, adapter)
    assert "not finite" in refusal(bank.register, "b", infinite)
    assert "b" not in bank


def test_a_folder_with_an_index_is_a_bank(tmp_path: Path, base: NamedBase):
    Bank.open(tmp_path / "bank", base, create=True).close()
    bank = open_bank(tmp_path / "bank", base)
    assert isinstance(bank, Bank)
    bank.close()
