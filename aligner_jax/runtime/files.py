"""Files and folders that are either there whole or not there at all."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from aligner_jax.errors import InputError

_TENSORSTORE = re.compile(r"\[os_error_code='(\d{1,9})'")


def place(text: str, flag: str) -> Path:
    """Returns where a flag says that something is to be written.

    Raises:
      InputError: it is an address, which would become folders of that name.
    """
    if "://" in text:
        raise InputError(f"{flag}={text} is not a folder: mount it (a bucket with gcsfuse) and give where it is")
    return Path(text)


def write_atomically(path: str | Path, content: bytes | str) -> None:
    """Puts `content` at `path`, durably: after a crash or a full disk the file is the old one or the new one.

    Missing parent folders are made. The bytes go to a temporary file of the same folder, which replaces `path` once it
    is on disk, and which is removed when anything fails.

    Raises:
      InputError: the folder or file cannot be written; names the path and the system's reason.
    """
    path = Path(path)
    content = _encoded(content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _write_beside(path, content)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {reason(error)}") from error
    try:
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        _remove(temporary)
        raise InputError(f"{path} cannot be written: {reason(error)}") from error


def write_folder_atomically(folder: str | Path, contents: Mapping[str, bytes | str]) -> None:
    """Makes `folder` with these files in it, durably: after a crash or a full disk it is whole or not there.

    Raises:
      InputError: see `new_folder`.
    """
    with new_folder(folder) as temporary:
        for name, content in contents.items():
            (temporary / name).write_bytes(_encoded(content))


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill, which has another name until the block ends, and is then `folder`: it is whole or not there.

    All its files are on disk before it gets its name. Missing parent folders are made. An empty folder of that name is
    replaced. When anything fails, the folder is removed.

    Raises:
      InputError: something other than an empty folder is there, or it cannot be written; names the path and the reason.
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
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{folder} cannot be written: {reason(error)}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _encoded(content: bytes | str) -> bytes:
    # Halves of surrogate pairs, which stand for bytes of a name that are not UTF-8, become what JSON writes for them.
    return content.encode(errors="backslashreplace") if isinstance(content, str) else content


def reason(error: BaseException) -> str:
    """Returns the system's words for a failure ("No space left on device"), or else the first line of its own."""
    return system_reason(error) or str(error).partition("\n")[0] or type(error).__name__


def system_reason(error: BaseException) -> str | None:
    """Returns the system's words for an OSError, or an error of TensorStore, anywhere in a chain of causes.

    None where the chain has no error of the system's.
    """
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        # TensorStore has no exceptions of its own: the system's number is at the end of a ValueError's text.
        if isinstance(link, ValueError) and (found := _TENSORSTORE.search(str(link))):
            return os.strerror(int(found[1]))
        link = link.__cause__ or link.__context__
    return None


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
    # Not from `tempfile`, whose files are private to the user: to give them the usual permissions afterwards takes the
    # process's umask, which can only be read by setting it, for all threads.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def _sync(path: Path) -> None:
    # Without it a power cut can undo a rename. Not every file system lets a folder be opened for this.
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)
