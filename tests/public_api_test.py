"""The names that users call: their arguments, defaults, shapes and published parameter counts."""

import importlib
import inspect
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import places
import pytest

import aligner_jax as aj
from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.llama import abstract_params

REQUIRED = inspect.Parameter.empty
MODELS = places.GOLDENS / "models"


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (aj.load_base, {"path": REQUIRED, "dtype": "float32"}),
        (aj.init_adapter, {"method": REQUIRED, "config": REQUIRED, "key": 0, "options": REQUIRED}),
        (aj.apply, {"params": REQUIRED, "adapter": REQUIRED, "tokens_bt": REQUIRED, "config": REQUIRED}),
        (aj.save_adapter, {"adapter": REQUIRED, "path": REQUIRED, "base": None}),
        (aj.combine, {"parts": REQUIRED, "base": None}),
        (aj.load_adapter, {"path": REQUIRED, "base": None}),
        (aj.sample, {"base": REQUIRED, "adapter": REQUIRED, "prompts": REQUIRED}),
        (aj.llama_config, {"name": REQUIRED}),
        (aj.load_config, {"path": REQUIRED, "overrides": None}),
        (aj.train, {"config": REQUIRED, "workdir": None}),
        (aj.evaluate, {"config": REQUIRED}),
        (aj.export, {"adapter": REQUIRED, "out": REQUIRED}),
        (attend, {"q_btnh": REQUIRED, "k_bskh": REQUIRED, "v_bskh": REQUIRED, "prefix": None}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_and_defaults(function, arguments: dict):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in list(parameters)[: len(arguments)]} == arguments
    for parameter in list(parameters.values())[len(arguments) :]:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default is not REQUIRED


def test_keyword_arguments_and_their_defaults():
    assert inspect.signature(aj.apply).parameters["config"].kind is inspect.Parameter.KEYWORD_ONLY
    sampling = {"max_new_tokens", "temperature", "seed"}
    assert sampling <= inspect.signature(aj.sample).parameters.keys()
    keywords = inspect.signature(attend).parameters
    assert (keywords["segment_ids_bt"].default, keywords["implementation"].default) == (None, "auto")
    assert list(inspect.signature(Prefix).parameters) == ["k_bpkh", "v_bpkh", "gate_bn", "joint"]
    assert inspect.signature(Prefix).parameters["joint"].default is False


def test_functions_that_share_a_commands_name_are_known():
    files = {path.stem for path in Path(aj.__file__).parent.glob("*.py")}
    assert set(aj.__all__) & files == {"combine", "evaluate", "export", "train"}
    assert all(hasattr(aj, name) for name in aj.__all__)


def test_the_command_that_shares_its_name_with_a_function_cannot_replace_it():
    with pytest.raises(ImportError, match=r"^aligner_jax\.combine is a command"):
        importlib.import_module("aligner_jax.combine")
    assert inspect.isfunction(aj.combine)


@pytest.mark.parametrize(
    ("model", "num_tokens", "count"),
    [
        ("llama_7b", 1, 5_056),
        ("llama2_7b", 1, 5_056),
        ("llama_7b", 10, 41_920),
        ("llama_7b", 100, 410_560),
        ("llama_13b", 1, 6_640),
        ("llama2_13b", 10, 52_720),
    ],
)
def test_an_aligner_has_the_papers_number_of_parameters(model: str, num_tokens: int, count: int):
    config = aj.llama_config(model)
    adapter = jax.eval_shape(lambda: aj.init_adapter("aligner", config, num_tokens=num_tokens))
    assert adapter.num_params == count
    assert adapter.options["start_layer"] == 2


def test_the_paper_has_one_token():
    assert jax.eval_shape(lambda: aj.init_adapter("aligner", aj.llama_config("llama_7b"))).num_params == 5_056


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llama_7b", 6_738_415_616),
        ("llama_13b", 13_015_864_320),
        ("llama2_7b", 6_738_415_616),
        ("llama2_13b", 13_015_864_320),
        ("llama2_70b", 68_976_648_192),
        ("llama3_8b", 8_030_261_248),
        ("llama3_70b", 70_553_706_496),
        ("llama3_1_8b", 8_030_261_248),
        ("llama3_2_1b", 1_235_814_400),
        ("llama3_2_3b", 3_212_749_824),
        ("tinyllama_1b", 1_100_048_384),
        ("mistral_7b", 7_248_023_552),
        ("smollm2_135m", 134_515_008),
        ("smollm2_360m", 361_821_120),
        ("smollm2_1_7b", 1_711_376_384),
        ("stories_260k", 260_032),
    ],
)
def test_named_models_have_their_published_number_of_parameters(name: str, count: int):
    leaves = jax.tree.leaves(abstract_params(aj.llama_config(name)))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_an_unknown_model_is_refused():
    with pytest.raises(aj.InputError, match="no model is named 'llama_8b'; there are llama_7b, "):
        aj.llama_config("llama_8b")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("with_adapter", [False, True])
def test_apply_gives_float32_logits_of_a_model_that_nobody_allocates(dtype: str, with_adapter: bool):
    config = aj.llama_config("llama2_7b")
    tokens_bt = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    adapter = jax.eval_shape(lambda: aj.init_adapter("aligner", config)) if with_adapter else None
    logits_btv = jax.eval_shape(
        lambda *args: aj.apply(*args, config=config), abstract_params(config, dtype), adapter, tokens_bt
    )
    assert (logits_btv.shape, logits_btv.dtype) == ((2, 5, 32_000), jnp.float32)


def test_an_adapter_is_a_pytree_of_its_trainable_arrays_alone(config: aj.LlamaConfig):
    adapter = aj.init_adapter("aligner", config, key=0, num_tokens=2, start_layer=1)
    assert {name: x.shape for name, x in adapter.trainable.items()} == {"tokens_pd": (2, 16), "gates_ln": (2, 4)}
    assert len(jax.tree.leaves(adapter)) == 2
    opened = adapter.replace(trainable={**adapter.trainable, "gates_ln": jnp.ones((2, 4))})
    assert isinstance(opened, aj.Adapter)
    assert jax.tree.structure(opened) == jax.tree.structure(adapter)


def test_a_base_from_a_folder_an_adapter_for_it_and_its_gradient():
    base = aj.load_base(MODELS / "llama3")
    assert base.tokenizer is None
    adapter = aj.init_adapter("aligner", base.config, start_layer=1)
    tokens_bt = jnp.arange(10)[None]

    def loss(trainable):
        logits_btv = aj.apply(base.params, adapter.replace(trainable=trainable), tokens_bt, config=base.config)
        return jnp.mean(logits_btv**2)

    gradient = jax.eval_shape(jax.grad(loss), adapter.trainable)
    assert jax.tree.map(jnp.shape, gradient) == jax.tree.map(jnp.shape, adapter.trainable)
