"""Checks that an adapter has its effect: in this project, in transformers, or behind a server.

python -m aligner_jax.verify ADAPTER --base=PATH
python -m aligner_jax.verify EXPORTED
PEER_PYTHON=ENV/bin/python python -m aligner_jax.verify EXPORTED
python -m aligner_jax.verify ADAPTER_OR_EXPORTED --endpoint=http://localhost:8000/v1 --model=NAME [--api_key_file=FILE]

Adapters and exported folders have a canary: log-probabilities of a few tokens, with and without the adapter. The
command computes them again and prints one line. Exit status:

- 0: adapter active.
- 3: adapter missing: the model equals the base.
- 4: something else: the model is neither.
- 1: the check could not be made.
"""

import os
from pathlib import Path

from absl import flags

from aligner_jax.errors import InputError
from aligner_jax.exports.canary import read_canary
from aligner_jax.exports.verify_endpoint import found_at_endpoint
from aligner_jax.exports.verify_local import PEER_VARIABLE, found_here, found_in_transformers, found_with_adapter
from aligner_jax.files.content import is_file, is_folder
from aligner_jax.peft.artifact import read_artifact
from aligner_jax.peft.canary import Canary, Found, Verdict, judge, parse_computed_in
from aligner_jax.peft.location import locate_adapter
from aligner_jax.runtime import command
from aligner_jax.runtime.openai_client import Endpoint, check_url, read_key
from aligner_jax.weights.base import form_of, load_base, locate
from aligner_jax.weights.hf import HF

PATH = flags.DEFINE_string(
    "path", None, "An adapter, a folder that `export` wrote, or a .gguf file in one; --path= may be left out."
)
BASE = flags.DEFINE_string("base", None, "The base of an adapter; not for exported folders, nor with --endpoint.")
ENDPOINT = flags.DEFINE_string("endpoint", None, "URL of an OpenAI-compatible server, up to and including /v1.")
MODEL = flags.DEFINE_string("model", None, "Name of the model at the endpoint.")
API_KEY_FILE = flags.DEFINE_string("api_key_file", None, "File with the endpoint's API key, if it needs one.")

_TIMEOUT, _RETRIES = 120.0, 2
_SENTENCES = {
    "active": "adapter active",
    "missing": "adapter missing: equals the base",
    "other": "something else",
}
_HERE = "here"
_STATUS = {"active": 0, "missing": 3, "other": 4}


def main() -> int:
    _check_flags()
    path = str(PATH.value)
    canary, adapter = _canary(path)
    if ENDPOINT.value:
        found, place = found_at_endpoint(canary, _endpoint(), str(MODEL.value)), f"at {ENDPOINT.value}"
    elif adapter is not None:
        found, place = _with_adapter(canary, adapter), _HERE
    else:
        found, place = _exported(canary, path)
    verdict = judge(canary, found)
    print(_sentence(verdict, place))
    return _STATUS[verdict.status]


def _canary(path: str) -> tuple[Canary, Path | None]:
    """Returns the canary, and the adapter's path; None for an exported base."""
    given = Path(path)
    folder = given if is_folder(given) else given.parent
    is_adapter = given.suffix in (".safetensors", ".pth")
    exported = None if is_adapter else read_canary(folder)
    if exported is not None:
        return exported, given if is_file(given / "adapter_config.json") else None
    located = locate_adapter(path)
    if not is_adapter and located.suffix != ".safetensors":
        raise InputError(f"{path} has no canary: it is neither an adapter nor a folder that `export` wrote")
    canary = read_artifact(located).canary
    if canary is None:
        raise InputError(
            f"{located} has no canary, as files of earlier releases, and those saved without the base's weights: "
            f"write it again with `python -m aligner_jax.convert --adapter=IN --to=OUT --base=PATH`"
        )
    return canary, located


def _with_adapter(canary: Canary, adapter: Path) -> list[Found]:
    if not BASE.value:
        raise InputError(f"{adapter} is an adapter: add --base=PATH, or --endpoint=URL --model=NAME of a server")
    # Rounding of the base may change log-probabilities more than the adapter does.
    dtype, quantization = parse_computed_in(canary.computed_in)
    given = {} if quantization is None else {"quantization": quantization.kind, "group_size": quantization.group_size}
    base = load_base(BASE.value, dtype, **given)
    return found_with_adapter(canary, base, read_artifact(adapter, base).adapter)


def _exported(canary: Canary, path: str) -> tuple[list[Found], str]:
    """Returns the log-probabilities and the place where they were computed."""
    if BASE.value:
        raise InputError(f"--base is of an adapter, and {path} is an exported model")
    given, python = Path(path), os.environ.get(PEER_VARIABLE)
    files = sorted(given.glob("*.gguf")) if is_folder(given) else []
    if len(files) == 1 and not is_file(given / "config.json"):
        given = files[0]
    if python and form_of(locate(given)) is HF:
        return found_in_transformers(canary, given, python), "in transformers"
    return found_here(canary, str(given)), _HERE


def _endpoint() -> Endpoint:
    key = read_key(API_KEY_FILE.value or None)
    return Endpoint(str(ENDPOINT.value), key, _TIMEOUT, _RETRIES, "verifying at an endpoint", "--endpoint")


def _sentence(verdict: Verdict, place: str) -> str:
    return (
        f"{_SENTENCES[verdict.status]} (computed {place}; largest difference of log-probabilities: "
        f"{verdict.from_adapted:.2g} from base and adapter, {verdict.from_base:.2g} from the base)"
    )


def _check_flags() -> None:
    if not PATH.value:
        raise InputError("give an adapter or an exported folder: python -m aligner_jax.verify PATH")
    if bool(ENDPOINT.value) != bool(MODEL.value):
        raise InputError("give the server and the name of its model together: --endpoint=URL --model=NAME")
    if ENDPOINT.value:
        check_url(ENDPOINT.value, "--endpoint", "the file of --api_key_file")
    elif API_KEY_FILE.value:
        raise InputError("--api_key_file is of an --endpoint")


if __name__ == "__main__":
    command.run(main, argument="path")
