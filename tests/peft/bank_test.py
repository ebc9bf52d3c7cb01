"""A bank of adapters: what is registered is read, by any process, whenever another one writes or is killed."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from adapter_files import NamedBase
from banks import check_equal, refusal, value_of
from places import ROOT

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.peft import bank as bank_module
from aligner_jax.peft.artifact import read_artifact, save_adapter
from aligner_jax.peft.bank import Bank, Entry

STARTS_BANK = """
import sys
import numpy as np
from adapter_files import NamedBase
from aligner_jax.errors import InputError
from aligner_jax.model.config import llama_config
from aligner_jax.peft import init_adapter
from aligner_jax.peft.bank import Bank

base = NamedBase(llama_config("stories_260k"))
fresh = init_adapter("aligner", base.config)
filled = lambda x: fresh.replace(trainable={k: np.full(v.shape, x, np.float32) for k, v in fresh.trainable.items()})
bank = Bank.open(sys.argv[1], base)
"""


def child(program: str, *args: str) -> subprocess.Popen[str]:
    """Starts a program after `STARTS_BANK`."""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])
    return subprocess.Popen(
        [sys.executable, "-c", STARTS_BANK + program, *args], stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("aligner", {"num_tokens": 1}),
        ("aligner", {"num_tokens": 3, "start_layer": 1, "gates": "layer"}),
        ("aligner", {"num_tokens": 3, "gates": "token", "init_std": 0.1}),
        ("llama_adapter", {"num_tokens": 2}),
        ("lora", {"rank": 2, "targets": ("q", "down")}),
        ("bias", {"target": "v"}),
    ],
)
def test_an_adapter_of_every_method_of_rows_comes_back(method, options, bank, base, randomized, tmp_path):
    adapter = randomized(init_adapter(method, base.config, **options))
    half = jax.tree.map(lambda x: x.astype("bfloat16"), adapter)
    bank.register("whole", adapter)
    bank.register("half", half)
    with Bank.open(tmp_path / "bank") as other:
        for opened in (bank, other):
            check_equal(opened.get("whole"), adapter)
            check_equal(opened.get("half"), half)
        assert other.kinds() == [(adapter.method, adapter.options)]
        assert (other.config, other.fingerprint) == (base.config, base.fingerprint)


def test_names_are_a_dictionary(bank: Bank, filled):
    assert (len(bank), list(bank.names()), "a" in bank) == (0, [], False)
    names = sorted([*(f"n{i}" for i in range(700)), "é", "ein Name", "z.1-2_3"])
    assert bank.register_many(Entry(name, filled(i)) for i, name in enumerate(names)) == 703
    assert (len(bank), list(bank.names()), "ein Name" in bank, 3 in bank) == (703, names, True, False)
    for i, name in enumerate(names):
        assert value_of(bank.get(name)) == i
    for after in ("", "n3", "n33x", "z.1-2_3", "é", "é" * 200_000, "\U0010ffff"):
        assert list(bank.names(after)) == [name for name in names if name > after]
    bank.delete("n5")
    assert (len(bank), "n5" in bank) == (702, False)
    for function in (bank.get, bank.delete, bank.metadata, bank.prompt_format):
        assert refusal(function, "n5") == f"{bank.path} has no adapter 'n5'"


def test_a_page_of_names_reads_no_names_before_it(bank: Bank, filled):
    bank.register_many(Entry(f"n{i:03}", filled(i)) for i in range(600))
    statements = []
    bank._index._reader.set_trace_callback(statements.append)
    assert next(bank.names("n550")) == "n551"
    assert len(statements) == 1


def test_a_replaced_adapter_has_another_key_and_can_still_be_read(bank: Bank, filled):
    bank.register("a", filled(1))
    bank.register("same", filled(1))
    old = bank.get("a")
    assert old.key == bank.get("same").key == bank.get("a").key
    bank.register("a", filled(2))
    assert bank.get("a").key != old.key
    assert (value_of(old), value_of(bank.get("a")), len(bank)) == (1, 2, 2)
    bank.register_many([Entry("b", filled(3)), Entry("b", filled(4))])
    assert value_of(bank.get("b")) == 4


def test_one_token_more_is_another_key_even_with_equal_numbers(bank: Bank, base: NamedBase):
    for start in (1, 2):
        adapter = init_adapter("lora", base.config, rank=2, alpha=start)
        bank.register(f"{start}", jax.tree.map(np.zeros_like, adapter))
    assert bank.get("1").key != bank.get("2").key


def test_metadata_of_a_file_are_kept(bank: Bank, base: NamedBase, filled, tmp_path: Path):
    path = tmp_path / "a.safetensors"
    save_adapter(filled(1), path, base, prompt_format={"template": "chat", "system": "Be brief."})
    artifact = read_artifact(path, base)
    bank.register("a", artifact.adapter, metadata=artifact.metadata)
    bank.register("b", filled(1))
    assert bank.prompt_format("a") == PromptFormat("chat", "Be brief.") == artifact.prompt_format
    assert bank.metadata("a") == {"prompt_format": artifact.metadata["prompt_format"]}
    assert (bank.prompt_format("b"), bank.metadata("b")) == (None, {})
    bank.register("c", filled(1), metadata={"prompt_format": '["chat"]'})
    assert refusal(bank.prompt_format, "c").startswith(f"adapter 'c' of {bank.path}: its metadata field")


def test_get_is_one_lookup(bank: Bank, filled):
    bank.register("a", filled(1))
    bank.get("a")
    statements = []
    bank._index._reader.set_trace_callback(statements.append)
    bank.get("a").read()
    assert len(statements) == 1


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "it has 0 characters"),
        ("x" * 201, "it has 201 characters"),
        ("a\nb", "cannot be printed"),
        ("a\x00b", "cannot be printed"),
        ("\ud800", "cannot be printed"),
        (" a", "white space"),
        (".a", "begins with a dot"),
        *((f"a{letter}b", "one of / \\ @ +") for letter in "/\\@+"),
    ],
)
def test_names_that_a_server_cannot_use_are_refused(name: str, problem: str, bank: Bank, filled):
    assert problem in refusal(bank.register, name, filled(1))
    assert (len(bank), name in bank) == (0, False)


def test_adapters_that_do_not_fit_are_refused(bank: Bank, base: NamedBase, filled):
    good, other = filled(1), init_adapter("aligner", llama_config("stories_260k"), start_layer=1)
    assert "adapter 'a': tensor" in refusal(bank.register, "a", other)
    assert "fits this base" in refusal(bank.register, "a", other)
    deep = init_adapter("aligner", llama_config("stories_260k"), start_layer=4)
    assert refusal(bank.register, "a", deep).startswith("a cannot be registered: start_layer is 4")
    less = good.replace(trainable={"gates_ln": good.trainable["gates_ln"]})
    assert refusal(bank.register, "a", less) == "adapter 'a' has no tensor 'tokens_pd'"
    assert "not finite" in refusal(bank.register, "a", filled(float("nan")))
    prompt = init_adapter("prompt", base.config)
    assert refusal(bank.register, "a", prompt).startswith("a cannot be registered: adapters of method 'prompt'")
    assert "another base" in refusal(bank.register, "a", good, metadata={"base_fingerprint": "f" * 64})
    assert "are 3, not text" in refusal(bank.register, "a", good, metadata={"x": 3})
    assert "metadata have 70,0" in refusal(bank.register, "a", good, metadata={"x": "y" * 70_000})
    assert len(bank) == 0
    entries = [Entry("good", good), Entry("bad", filled(float("inf")))]
    assert "adapter 'bad'" in refusal(bank.register_many, entries)
    assert len(bank) == 0


def test_a_bank_of_another_base_is_refused(bank: Bank, base: NamedBase):
    other = NamedBase(llama_config("stories_260k"))
    assert "d_model 16 against 64" in refusal(Bank.open, bank.path, other)
    assert "other weights (fingerprint 0123456789ab against ffffffffffff)" in refusal(
        Bank.open, bank.path, base._replace(fingerprint="f" * 64), create=True
    )


def test_opening_makes_nothing_unless_it_is_told_to(tmp_path: Path, base: NamedBase):
    for folder in (tmp_path / "none", tmp_path):
        assert refusal(Bank.open, folder, base) == f"{folder} is not a bank of adapters: it has no index.sqlite"
    (tmp_path / "file").touch()
    assert "is a folder with other things in it" in refusal(Bank.open, tmp_path, base, create=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_is_read(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    bank.register("a", filled(1))
    bank.close()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    before = sorted(bank.path.iterdir())
    with Bank.open(bank.path) as opened:
        assert value_of(opened.get("a")) == 1
        assert "its folder is read-only" in refusal(opened.register, "b", filled(2))
        assert sorted(bank.path.iterdir()) == before


def test_a_failed_commit_changes_nothing(bank: Bank, filled, monkeypatch: pytest.MonkeyPatch):
    bank.register("a", filled(1))
    appended = bank_module.append

    def crash(path: Path, pieces) -> int:
        appended(path, pieces)
        with path.open("ab") as file:
            file.write(b"xyz")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(bank_module, "append", crash)
        for name in ("a", "b"):
            with pytest.raises(KeyboardInterrupt):
                bank.register(name, filled(2))
        with pytest.raises(KeyboardInterrupt):
            bank.register("c", init_adapter("lora", bank.config, rank=2))
    assert (list(bank.names()), value_of(bank.get("a")), len(bank.kinds())) == (["a"], 1, 1)
    bank.register("b", filled(3))
    assert (value_of(bank.get("a")), value_of(bank.get("b"))) == (1, 3)


def test_a_process_that_is_killed_loses_at_most_the_adapter_in_flight(tmp_path: Path):
    base = NamedBase(llama_config("stories_260k"))
    Bank.open(tmp_path / "bank", base, create=True).close()
    program = "for i in range(10**9):\n    bank.register(f'n{i}', filled(i))\n    print(i, flush=True)\n"
    last = -1
    with child(program, str(tmp_path / "bank")) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last = int(line)
            if last == 40:
                os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    with Bank.open(tmp_path / "bank", base) as bank:
        assert len(bank) in (last + 1, last + 2)
        assert [value_of(bank.get(f"n{i}")) for i in range(len(bank))] == [*range(len(bank))]
        bank.register("new", init_adapter("aligner", base.config))
        assert "new" in bank


def test_threads_and_processes_read_while_one_writes(tmp_path: Path):
    base = NamedBase(llama_config("stories_260k"))
    fresh = init_adapter("aligner", base.config)

    def filled(value: float) -> Adapter:
        return fresh.replace(trainable={k: np.full(x.shape, value, np.float32) for k, x in fresh.trainable.items()})

    def read(bank: Bank, number: int) -> bool:
        """Returns True if the adapter is there; the value of `n3` is 3, 103, 203, …"""
        try:
            stored = bank.get(f"n{number}")
        except InputError as error:
            if "has no adapter" not in str(error):
                raise
            return False
        assert value_of(stored) % 100 == number
        return True

    failures, is_over = [], threading.Event()

    def reader(bank: Bank) -> None:
        try:
            while not is_over.is_set():
                found = [read(bank, number) for number in range(20)]
                # The writer never removes the first ten.
                assert all(found[:10])
        except BaseException as error:
            failures.append(error)

    with Bank.open(tmp_path / "bank", base, create=True) as bank:
        bank.register_many(Entry(f"n{i}", filled(i)) for i in range(20))
        writes = (
            "for i in range(60):\n    for n in (3, 15):\n        bank.register(f'n{n}', filled(100 * i + n))\n"
            "    bank.delete('n15')\n    if i % 9 == 0: bank.compact()\nprint('done')\n"
        )
        threads = [threading.Thread(target=reader, args=(bank,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        with child(writes, str(tmp_path / "bank")) as process:
            for i in range(30):
                bank.register("n4", filled(100 * i + 4))
            assert process.communicate(timeout=300)[0] == "done\n"
        is_over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert (value_of(bank.get("n3")), value_of(bank.get("n4")), "n15" in bank) == (5903, 2904, False)
