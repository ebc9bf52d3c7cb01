"""A tiny model, adapters for it and packed batches, which most tests of the core share."""

import dataclasses
import functools
import gc
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

# Set before JAX is imported, and inherited by the processes that tests start. Compilation is most of the cost of tests:
# it takes half the time without most optimizations, and programs that are small for a user are cached too. `optimized`
# is for properties that must hold either way.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")

import jax
import jax.numpy as jnp
import judge_server
import model_folders
import numpy as np
import orbax_folders
import peft_folders
import pytest
import tiny_runs
from fake_pod import Pod
from rich.console import Console

from aligner_jax.evals import responses
from aligner_jax.evals.interface import Run, parse_evaluate_config
from aligner_jax.evals.subject import Subject
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params, is_spec, param_specs
from aligner_jax.objectives.batch import Batch
from aligner_jax.peft import Adapter, init_adapter
from aligner_jax.weights import orbax
from aligner_jax.weights.base import load_base
from scripts.lib.tiny_llama import write_tiny_llama

MAPPINGS = Path("/proc/self/maps")
# A shell that starts the tests in the background makes them, and the processes they start, ignore SIGINT.
signal.signal(signal.SIGINT, signal.default_int_handler)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_configure(config: pytest.Config) -> None:
    """Lets a test continue if another process is writing an entry of JAX's cache or was killed while writing it."""
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry")


def pytest_collection_finish() -> None:
    """Leaves the objects of imported libraries and of collected tests out of later garbage collections.

    There are a million of them, and a collection, which writing a base in Orbax's format makes at every block, would
    take 0.1 s.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="module")
def few_objects() -> Iterator[None]:
    """Leaves the objects of earlier modules out of garbage collections, and frees compiled programs if there are many.

    Orbax collects garbage at every block that it writes, which takes 0.3 s once earlier tests have left millions of
    objects. Each program takes some of the 65,530 mappings that a process may have; without free mappings neither
    memory nor a thread can be allocated.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 20_000:
        jax.clear_caches()
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def config() -> LlamaConfig:
    """A config with grouped queries and a head_dim that is not d / n, so that swapped axes are noticed."""
    return LlamaConfig(
        vocab_size=40, d_model=16, d_mlp=24, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, context_length=64
    )


@pytest.fixture(scope="session")
def random_params() -> Callable[[LlamaConfig], Params]:
    """Random weights with norms that are not one, and a residual stream that every layer changes much."""

    def make(config: LlamaConfig) -> Params:
        rng = np.random.default_rng(1)

        def draw(spec):
            return jnp.asarray((1.0 if spec.init is None else 0.0) + 0.3 * rng.standard_normal(spec.shape), jnp.float32)

        return jax.tree.map(draw, param_specs(config), is_leaf=is_spec)

    return make


@pytest.fixture(scope="session")
def params(config: LlamaConfig, random_params) -> Params:
    return random_params(config)


@pytest.fixture(scope="session")
def randomized() -> Callable[..., Adapter]:
    """Returns an adapter with random arrays, like a trained one. Takes the adapter and a key."""

    def make(adapter: Adapter, key: int = 4) -> Adapter:
        rng = np.random.default_rng(key)
        drawn = {name: 0.3 * rng.standard_normal(x.shape) for name, x in adapter.trainable.items()}
        return adapter.replace(trainable={name: jnp.asarray(x, jnp.float32) for name, x in drawn.items()})

    return make


@pytest.fixture(scope="session")
def trained_adapter(config: LlamaConfig) -> Callable[..., Adapter]:
    """Returns Aligners with nonzero gates, like trained ones. Takes num_tokens, start_layer and key."""

    def make(num_tokens: int = 1, start_layer: int = 1, key: int = 3) -> Adapter:
        fresh = init_adapter("aligner", config, key, num_tokens=num_tokens, start_layer=start_layer)
        rng = np.random.default_rng(key)
        trained = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in fresh.trainable.items()}
        return fresh.replace(trainable=jax.tree.map(jnp.asarray, trained))

    return make


@pytest.fixture(scope="session")
def pack() -> Callable[..., Batch]:
    """Packs documents (token ids, loss mask) into rows as data makes them, zero-padded to a length."""

    def make(rows: list[list[tuple[list[int], list[int]]]], length: int) -> Batch:
        names = ("tokens_bt", "segment_ids_bt", "positions_bt", "loss_mask_bt")
        arrays = {name: np.zeros((len(rows), length), np.int32) for name in names}
        for row, documents in enumerate(rows):
            start = 0
            for number, (tokens, mask) in enumerate(documents, 1):
                place = (row, slice(start, start + len(tokens)))
                for name, values in zip(names, (tokens, number, range(len(tokens)), mask), strict=True):
                    arrays[name][place] = values
                start += len(tokens)
        mask_bt = arrays.pop("loss_mask_bt")
        return Batch(loss_mask_bt=jnp.asarray(mask_bt, bool), **jax.tree.map(jnp.asarray, arrays))

    return make


@pytest.fixture(scope="session")
def optimized() -> Callable[..., Callable]:
    """Compiles like `jax.jit`, with all of XLA's optimizations, as in a real run."""
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    return functools.partial(jax.jit, compiler_options=options)


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A Hugging Face folder of a random Llama with 4 layers and its own tokenizer."""
    folder = tmp_path / "tiny"
    write_tiny_llama(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Subject]:
    """The model of `tiny_model` in the form that evaluations take. Takes an adapter and a batch size."""
    folder = tmp_path_factory.mktemp("subject") / "tiny"
    write_tiny_llama(folder)
    base = load_base(folder)

    def make(adapter: Adapter | None = None, batch_size: int = 4) -> Subject:
        return Subject(base, adapter, "tiny", None, batch_size)

    return make


@pytest.fixture
def asked(tiny_subject: Callable[..., Subject], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Runs an evaluation whose model gives the given answers.

    Takes the evaluation's module, options and answers, and any fields of the config. Returns the scores, the prompts
    and the seed.
    """

    def run(module: ModuleType, options: object, texts: list[str], **config: object):
        given = {}

        def generate(subject, prompts, store, console, *, seed, what=""):
            given.update(prompts=prompts, seed=seed)
            return texts

        monkeypatch.setattr(responses if not hasattr(module, "generate") else module, "generate", generate)
        parsed = parse_evaluate_config({"evaluation": {"name": "any"}, **config})
        # Brackets in a name must not be read as the table's markup.
        subject = dataclasses.replace(tiny_subject(), name="[/tiny]")
        outcome = module.evaluate(Run(parsed, subject, tmp_path, Console(quiet=True), {}), options)
        Console(file=io.StringIO()).print(outcome.table)
        return outcome.scores, given["prompts"], given["seed"]

    return run


@pytest.fixture
def tiny_run(tiny_model: Path, tmp_path: Path) -> dict:
    """A config, as nested dicts, of a run that takes a second and has no evaluation at its end."""
    return tiny_runs.settings_of(tiny_model, tiny_runs.write_rows(tmp_path / "data.jsonl", tiny_runs.sft_rows()))


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    """A clone, gcloud and workers, without a slice."""
    return Pod(tmp_path)


@pytest.fixture
def ready(pod: Pod) -> Pod:
    """A slice that exists."""
    pod.states("tpu-vm", "READY")
    return pod


@pytest.fixture
def judge_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge's key, in the variable that `judge_server.config_of` names."""
    monkeypatch.setenv("TEST_JUDGE_KEY", judge_server.KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def console() -> Console:
    """A console that prints nothing."""
    return Console(quiet=True)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gives even a tiny model's leaves several blocks in Orbax's format."""
    monkeypatch.setattr(orbax, "_BLOCK_BYTES", 1)


@pytest.fixture(scope="module")
def hf_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of `model_folders.CONFIG` in two files; not to be changed."""
    return model_folders.write_hf(
        tmp_path_factory.mktemp("hf") / "model", model_folders.CONFIG, model_folders.draw(), files=2
    )


@pytest.fixture(scope="module")
def orbax_base(hf_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model in Orbax's format and float32; not to be changed."""
    return orbax_folders.write(hf_base, tmp_path_factory.mktemp("orbax") / "model")


@pytest.fixture
def peft_folder(tmp_path: Path):
    """Copies the golden folders, so that tests can damage them; `change` edits adapter_config.json."""

    def make(name: str, /, **change) -> Path:
        copy = tmp_path / name
        copy.mkdir()
        values = json.loads((peft_folders.GOLDENS / "peft" / name / "adapter_config.json").read_text())
        values |= change
        (copy / "adapter_config.json").write_text(json.dumps(values))
        shutil.copy(peft_folders.GOLDENS / "peft" / name / "adapter_model.safetensors", copy)
        return copy

    return make
