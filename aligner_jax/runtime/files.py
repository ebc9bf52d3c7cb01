"""Atomic writes: a file or folder is complete, or not there at all, and is replaced only if that is wanted."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from aligner_jax.errors import InputError
from aligner_jax.files.content import exists

_TENSORSTORE = re.compile(r"\[os_error_code='(\d{1,9})'")


def place(text: str, flag: str) -> Path:
    """Returns the path that a flag gives for output.

    Raises:
      InputError: the text is a URL, which would become folders of that name.
    """
    if "://" in text:
        raise InputError(f"{flag}={text} is not a folder: mount it (a bucket with gcsfuse) and give where it is")
    return Path(text)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Writes a file atomically and durably: after a crash or on a full disk, it is the old file or the new one.

    Missing parent folders are made. The content goes to a temporary file in the same folder, which replaces `path` once
    it is on disk, and is removed on failure.

    Raises:
      InputError: the folder or file cannot be written; names the path and the system's reason.
    """
    path = Path(path)
    content = _encoded(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_beside(path, content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {_why(path, error)}") from error
    try:
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        _remove(temporary)
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def write_folder_atomically(folder: str | Path, contents: Mapping[str, bytes | str]) -> None:
    """Writes a new folder of files atomically and durably: after a crash or on a full disk, it is complete or absent.

    Args:
      contents: content by file name.

    Raises:
      InputError: see `new_folder`.
    """
    with new_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(_encoded(content))


def replace_folder(folder: str | Path, contents: Mapping[str, bytes | str]) -> None:
    """Replaces a folder that has no other files than those of `contents`.

    The new folder is on disk before the old one is moved. A process that is killed between the two renames leaves both
    whole, under hidden names beside it.

    Raises:
      InputError: the folder has other files, or it cannot be written.
    """
    folder = Path(os.path.realpath(folder))
    old, new = _temporary_name(folder), _temporary_name(folder)
    try:
        if others := sorted(set(os.listdir(folder)) - contents.keys()):
            raise InputError(f"{folder} is a folder with other things in it ({others[0]}); give another name")
        write_folder_atomically(new, contents)
        os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            os.rename(old, folder)
            raise
        sync(folder.parent)
        shutil.rmtree(old)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """Yields a temporary folder to fill, and renames it to `folder` when the block ends.

    All files are on disk before the rename. Missing parent folders are made. An empty folder of that name is replaced.
    On failure the temporary folder is removed.

    Raises:
      InputError: `folder` is a file or is not empty, or it cannot be written; names the path and the reason.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a folder is to be written there")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder} is a folder with other things in it; name a new one")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_name(folder)
        temporary.mkdir()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {_why(folder, error)}") from error
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            sync(path)
        os.replace(temporary, folder)
        sync(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_new(path: Path, *, overwrite: bool) -> None:
    """Refuses a path that exists, unless `overwrite`. To be called before slow work.

    Raises:
      InputError: the path exists; the message names it and the flag --overwrite.
    """
    if not overwrite and exists(path):
        raise InputError(f"{path} exists already: give another name, or add --overwrite to replace it")


@contextlib.contextmanager
def named_files() -> Iterator[None]:
    """Turns an OSError about a file (a name that is too long, a broken disk) into an InputError: it is no bug."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise InputError(f"{os.fsdecode(error.filename)} cannot be used: {reason(error)}") from error
        try:
            os.getcwd()
        except OSError as gone:
            raise InputError(f"the current folder cannot be used: {reason(gone)}; go to another first") from error
        raise


def sync(path: Path) -> None:
    """Returns once a file's content, or a folder's names, are on disk."""
    # Without fsync a power cut can undo a rename. Not every file system allows it for folders.
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _encoded(content: bytes | str) -> bytes:
    # Lone surrogates, which stand for non-UTF-8 bytes of a file name, become \udcXX as in JSON.
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def reason(error: BaseException) -> str:
    """Returns the system's message for a failure ("No space left on device"), or else the error's first line."""
    return system_reason(error) or str(error).partition("\n")[0] or type(error).__name__


def system_reason(error: BaseException) -> str | None:
    """Returns the system's message for an OSError or TensorStore error in a chain of causes; None if there is none."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        # TensorStore raises a ValueError whose text ends with the system's error number.
        if isinstance(link, ValueError) and (found := _TENSORSTORE.search(str(link))):
            return os.strerror(int(found[1]))
        link = link.__cause__ or link.__context__
    return None


def _why(path: Path, error: BaseException) -> str:
    """Returns the reason why `path` or its parent folders could not be made."""
    # The system says "File exists" or "Not a directory", but not of which part of the path.
    if isinstance(error, FileExistsError | NotADirectoryError):
        for parent in path.parents:
            if parent.exists() and not parent.is_dir():
                return f"{parent} is a file, not a folder"
    return reason(error)


def _write_beside(path: Path, content: bytes) -> Path:
    temporary = _temporary_name(path)
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except BaseException:
        _remove(temporary)
        raise
    return temporary


def _temporary_name(path: Path) -> Path:
    # `tempfile` makes files that are private to the user. Giving them the usual permissions needs the umask, which can
    # only be read by setting it, for all threads.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
