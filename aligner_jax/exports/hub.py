"""Uploads a finished folder to a new repository on a hub, with the user's own token, through huggingface_hub."""

from pathlib import Path
from types import ModuleType

from aligner_jax.errors import InputError
from aligner_jax.files.extras import pip_line
from aligner_jax.weights.hub import is_hub_name

_LOGIN = "set HF_TOKEN, or log in with `hf auth login`"
# Status of an answer, and its meaning for a new repository.
_STATUS = {
    401: f"the hub does not accept the token: {_LOGIN}",
    403: "the token has no right to write there: it needs the permission to write, and the name must be yours",
    404: "the hub knows no user or organization of that name, or the token may not see it",
}


def check_push(name: str) -> None:
    """Checks what an upload needs, before an export takes its time. Nothing is sent.

    Raises:
      InputError: the name is not "org/name", huggingface_hub is not installed, or there is no token.
    """
    _token(_client(name), name)


def push(folder: Path, name: str, *, private: bool = True) -> str:
    """Uploads a folder to a new repository of a hub.

    The token is that of HF_TOKEN or of `hf auth login`; it is sent to the hub (HF_ENDPOINT) alone and never printed.

    Args:
      folder: the finished folder.
      name: name of the repository, "org/name". A repository that exists is refused, since its files would be mixed.
      private: True to make a private repository, which its owner can publish after a look at it.

    Returns:
      The URL of the repository.

    Raises:
      InputError: see `check_push`; or the name is taken, the token has no right to it, or the hub cannot be reached.
    """
    hub = _client(name)
    token = _token(hub, name)
    api = hub.HfApi(token=token, library_name="aligner_jax")
    try:
        url = api.create_repo(name, private=private, repo_type="model", exist_ok=False)
    except Exception as error:  # The hub client passes on all errors of its HTTP library.
        raise InputError(f"{folder} was not uploaded to {name}: {_reason(error, token, name)}") from None
    try:
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload with aligner_jax")
    except Exception as error:
        raise InputError(
            f"{folder} was not uploaded to {name}, which was made: {_reason(error, token, name)}; go on with "
            f"`hf upload {name} {folder}`"
        ) from None
    return str(url)


def _client(name: str) -> ModuleType:
    if not is_hub_name(name):
        raise InputError(f"--push={name} is not the name of a repository, such as org/name")
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(f"--push={name} needs the package huggingface_hub: {pip_line('hub')}") from None
    return huggingface_hub


def _token(hub: ModuleType, name: str) -> str:
    try:
        token = hub.get_token()
    except Exception as error:
        raise InputError(f"--push={name} finds no token ({type(error).__name__}): {_LOGIN}") from None
    if not token:
        raise InputError(f"--push={name} finds no token: {_LOGIN}")
    return token


def _reason(error: Exception, token: str, name: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 409:
        return f"that name is taken; choose another, or add to it yourself with `hf upload {name} DIR`"
    if status in _STATUS:
        return _STATUS[status]
    said = " ".join(str(error).replace(token, "…").split()) or "no reason given"
    if status is not None:
        return f"the hub answers with status {status} ({said})"
    unreached = isinstance(error, OSError) or type(error).__module__.startswith("httpx")
    return f"{'the hub cannot be reached' if unreached else 'the upload failed'} ({type(error).__name__}: {said})"
