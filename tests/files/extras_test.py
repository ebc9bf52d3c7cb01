"""Packages that are optional: where one is missing, a sentence says how to install it."""

import sys
import tomllib
from collections.abc import Callable
from typing import Any

import places
import pytest
from command_runs import run_command

from aligner_jax.chatting.endpoint import EndpointModel, EndpointOptions
from aligner_jax.data.sources.prepared import import_tfds
from aligner_jax.errors import InputError
from aligner_jax.evals.harness_model import import_lm_eval
from aligner_jax.exports.hub import _client
from aligner_jax.files.extras import missing, pip_line
from aligner_jax.planning.topology import topology_devices
from aligner_jax.runtime.openai_client import Endpoint, open_client
from aligner_jax.studies.families.reasoning import _library
from aligner_jax.weights.hub import download

URL = "http://127.0.0.1:9/v1"


def _chat() -> None:
    model = EndpointModel(EndpointOptions(url=URL, model="m", key=None, timeout=1, max_new_tokens=1, sampling={}))
    list(model._events({}))


USES: dict[str, tuple[str, Callable[[], Any]]] = {
    "huggingface_hub": ("hub", lambda: download("org/name", "base model", ["*"])),
    "libtpu": ("tpu", lambda: topology_devices("v5e:2x4")),
    "lm_eval": ("eval", import_lm_eval),
    "openai": ("judge", lambda: open_client(Endpoint(URL, None, 1, 0, "a judge", "--endpoint"), 1)),
    "httpx2": ("judge", _chat),
    "tensorflow_datasets": ("tfds", import_tfds),
    "reasoning_gym": ("study", lambda: _library("x")),
}


@pytest.mark.parametrize("package", USES)
def test_a_missing_package_is_named_with_its_extra(package: str, monkeypatch: pytest.MonkeyPatch):
    extra, use = USES[package]
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as raised:
        use()
    name = {"tensorflow_datasets": "tensorflow-datasets", "lm_eval": "lm-eval", "reasoning_gym": "reasoning-gym"}
    assert name.get(package, package) in str(raised.value)
    assert str(raised.value).endswith(pip_line(extra))


def test_uploads_need_the_hub_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"^--push=org/name needs the package huggingface_hub: pip install"):
        _client("org/name")


@pytest.mark.parametrize("package", ["starlette", "uvicorn", "h11", "prometheus_client"])
def test_the_server_names_all_that_it_lacks(package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, package, None)
    ended = run_command("serve", "--base=b", "--adapters=a")
    assert (ended.status, ended.err) == (1, f"error: the server needs the packages {package}: {pip_line('serve')}\n")


def test_every_extra_that_is_named_is_one_and_in_the_file_that_is_named():
    project = tomllib.loads((places.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in {"hub", "tpu", "eval", "judge", "serve", "tfds", "study", "wandb"}:
        line = pip_line(extra)
        assert line.startswith(f"pip install 'aligner_jax[{extra}]' (in a clone: pip install -r ")
        requirements = (places.ROOT / line.removesuffix(")").split()[-1]).read_text(encoding="utf-8")
        for package in project["optional-dependencies"][extra]:
            assert package.partition(">=")[0] in requirements, package


def test_missing_packages_are_told_without_importing_them(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    assert missing("wave", "no_such_package") == ["no_such_package"]
    assert "wave" not in sys.modules
