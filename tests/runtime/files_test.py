import os
import subprocess
import sys

import pytest

from aligner_jax.errors import InputError
from aligner_jax.runtime.files import reason, write_atomically, write_folder_atomically

BEYOND_LIMIT = """
import resource, signal, sys
from aligner_jax.errors import InputError
from aligner_jax.runtime.files import write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    write_atomically(sys.argv[1], b"x" * 1000)
except InputError as error:
    print(error)
"""


def test_bytes_and_text_are_written_and_replaced(tmp_path):
    path = tmp_path / "new" / "folder" / "file"
    write_atomically(path, "größe")
    assert path.read_bytes() == "größe".encode()
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["file"]


def test_the_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomically(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_the_processs_umask_is_never_set(tmp_path, monkeypatch):
    before = os.umask(0o027)
    try:
        # A file that another thread makes in between would have the wrong permissions.
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", lambda _: pytest.fail("the umask is set, for all threads"))
            write_atomically(tmp_path / "file", "")
            write_folder_atomically(tmp_path / "folder", {"a": ""})
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder", "folder/a")]
    assert modes == [0o640, 0o750, 0o640]


def test_when_it_does_not_fit_the_old_file_stays_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", BEYOND_LIMIT, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} cannot be written: File too large\n"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_path_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/below cannot be written: \S+/file is a file, not a folder$"):
        write_atomically(tmp_path / "file" / "below", b"")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"folder cannot be written: Is a directory$"):
        write_atomically(tmp_path / "folder", b"")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_folder_is_whole_or_not_there(tmp_path):
    folder = tmp_path / "new" / "folder"
    write_folder_atomically(folder, {"a": "größe", "b": b"\x00"})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": "größe".encode(), "b": b"\x00"}
    (tmp_path / "plain").mkdir()
    assert folder.stat().st_mode == (tmp_path / "plain").stat().st_mode
    write_folder_atomically(tmp_path / "plain", {"a": b""})
    assert os.listdir(tmp_path / "plain") == ["a"]

    program = BEYOND_LIMIT.replace("write_atomically", "write_folder_atomically")
    program = program.replace('b"x" * 1000', '{"small": b"x", "large": b"x" * 1000}')
    path = tmp_path / "new" / "other"
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path} cannot be written: File too large\n"
    assert os.listdir(tmp_path / "new") == ["folder"]


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, sentence in (
        (tmp_path, "is a folder with other things in it; name a new one$"),
        (tmp_path / "file", "file is a file, but a folder is to be written there$"),
        (tmp_path / "file" / "below", r"below cannot be written: \S+/file is a file, not a folder$"),
    ):
        with pytest.raises(InputError, match=sentence):
            write_folder_atomically(path, {"a": b""})
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_the_reason_is_found_in_the_chain_of_causes():
    error = RuntimeError("saving failed")
    error.__cause__ = OSError(28, "No space left on device")
    assert reason(error) == "No space left on device"
    assert reason(ValueError("first line\nsecond")) == "first line"
    assert reason(ValueError()) == "ValueError"
