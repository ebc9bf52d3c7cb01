"""A step sharded over eight devices, in a separate process, equals the step on one device."""

import dataclasses
import json
import re
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.model.llama import init_params
from aligner_jax.objectives.batch import Batch
from aligner_jax.objectives.step import init_state
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import sharding
from aligner_jax.runtime.config import MeshConfig, parse_config
from aligner_jax.tasks.program import make_program

CONFIG = LlamaConfig(
    vocab_size=64, d_model=64, d_mlp=96, num_layers=3, num_heads=16, num_kv_heads=8, head_dim=64, context_length=128
)
TIED = dataclasses.replace(CONFIG, tied_embeddings=True)
ROWS, LENGTH = 16, 128
DEVICES = 8
SHAPES = [(d, f, 8 // d // f) for d in (1, 2, 4, 8) for f in (1, 2, 4, 8) if 8 % (d * f) == 0]
ADAPTERS = {
    "aligner": {"method": "aligner", "num_tokens": 10, "start_layer": 1},
    "lora": {"method": "lora", "rank": 8, "dropout": 0.0},
    "one token": {"method": "aligner", "num_tokens": 1, "start_layer": 1},
    "full": {"method": "full"},
}
FEW = [(1, 8, 1), (2, 2, 2)]
SHAPES_OF = {"aligner": SHAPES, "lora": SHAPES, "one token": FEW, "full": FEW}


def differences(name: str, shapes: list[tuple[int, int, int]]) -> dict[str, dict[str, float]]:
    """Returns differences between a step on each mesh and on one device: of the loss and of each gradient, relative."""
    draw = np.random.default_rng(0)
    # The cross-entropy has another path for a head that is tied and differentiated.
    model = TIED if name == "full" else CONFIG
    params = init_params(model, dtype="float32")
    adapter = init_adapter(
        ADAPTERS[name]["method"], model, **{k: v for k, v in ADAPTERS[name].items() if k != "method"}
    )
    if name != "full":
        # Large LoRA factors would make the model itself magnify rounding.
        size = 0.1 if name == "lora" else 0.3
        noise = {key: draw.standard_normal(x.shape) * size for key, x in adapter.trainable.items()}
        adapter = adapter.replace(trainable={key: jnp.asarray(x, jnp.float32) for key, x in noise.items()})
    # Rows have one target to many, so that a mean of means differs from the mean.
    mask = np.arange(LENGTH)[None] < np.arange(2, 2 + 7 * ROWS, 7)[:, None]
    batch = Batch(
        tokens_bt=draw.integers(0, 64, (ROWS, LENGTH)).astype(np.int32),
        segment_ids_bt=np.repeat([[1, 2]], LENGTH // 2, 1).repeat(ROWS, 0).astype(np.int32),
        positions_bt=np.tile(np.arange(LENGTH // 2), (ROWS, 2)).astype(np.int32),
        loss_mask_bt=mask,
    )

    def step(shape: tuple[int, int, int], devices: list) -> tuple[float, dict[str, np.ndarray]]:
        config = parse_config(
            {
                "base": {"path": ""}, "steps": 1, "adapter": ADAPTERS[name], "optim": {"accumulate": 2},
                "data": {"path": "", "batch_size": ROWS, "sequence_length": LENGTH},
                "mesh": dict(zip(("data", "fsdp", "tensor"), shape, strict=True)),
                # Rematerialization changes nothing, so one of the cases has two kinds of it.
                "remat": "dots:1" if name == "one token" and shape != (1, 1, 1) else "full",
            }
        )  # fmt: skip
        program = make_program(config, model, adapter, sharding.mesh_of(config.mesh, devices))
        state = jax.device_put(init_state(adapter, program.optimizer), program.replicated)
        with program.use():
            state, metrics = program.step(state, jax.device_put(params, program.params_sharding), batch, None)
        # AdamW's first moment after one step is the gradient times 1 - b1.
        return float(metrics.loss), {key: np.asarray(x) for key, x in first_moment(state.optimizer).items()}

    loss, gradient = step((1, 1, 1), jax.devices()[:1])
    found = {}
    for shape in shapes:
        split_loss, split = step(shape, jax.devices())
        found[str(shape)] = {"loss": abs(split_loss - loss) / loss} | {
            key: float(np.max(np.abs(split[key] - x)) / np.max(np.abs(x))) for key, x in gradient.items()
        }
    return found


def first_moment(optimizer) -> dict[str, jax.Array]:
    (adam,) = (s for s in jax.tree.leaves(optimizer, is_leaf=lambda s: hasattr(s, "mu")) if hasattr(s, "mu"))
    return adam.mu


@pytest.mark.parametrize("name", SHAPES_OF)
def test_a_step_split_over_a_mesh_is_the_step_of_one_device(name: str):
    """All meshes are one test, since they share a process that could not be shared between workers."""
    found = found_by_child(name)
    assert list(found) == list(map(str, SHAPES_OF[name]))
    for shape, differences in found.items():
        assert differences.keys() > {"loss"}
        assert {key: d for key, d in differences.items() if not d < 1e-5} == {}, shape


def found_by_child(name: str) -> dict[str, dict[str, float]]:
    child = many_devices.run([sys.executable, __file__, name], DEVICES)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout)


def test_parameters_are_split_over_fsdp_and_norms_are_not():
    mesh = jax.sharding.AbstractMesh((2, 4, 2), sharding.AXES)
    shardings = sharding.param_shardings(llama_config("llama2_7b"), mesh)
    assert shardings.embed_vd.spec == PartitionSpec("tensor", "fsdp")
    assert shardings.layers.q_ldnh.spec == PartitionSpec(None, "fsdp", "tensor", None)
    assert shardings.layers.down_lfd.spec == PartitionSpec(None, "tensor", "fsdp")
    assert shardings.norm_d.spec == PartitionSpec(None)
    assert sharding.batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))


@pytest.mark.parametrize(
    ("axes", "shape"), [({}, (1, 1, 1)), ({"data": 1, "fsdp": 1}, (1, 1, 1)), ({"data": -1, "fsdp": 1}, (1, 1, 1))]
)
def test_a_mesh_of_all_devices(axes: dict, shape: tuple):
    assert sharding.make_mesh(**axes).devices.shape == shape


@pytest.mark.parametrize(
    "axes", [{"data": 2}, {"data": 1, "fsdp": 3}, {"data": 0, "fsdp": -1}, {"data": -2, "fsdp": -1}]
)
def test_a_mesh_that_does_not_fit_is_refused(axes: dict):
    with pytest.raises(InputError, match="does not fit 1 devices"):
        sharding.make_mesh(**axes)


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"data": -1}, "data=-1, fsdp=-1 and tensor=1 leaves .* to data and fsdp, .*: add fsdp=1 "),
        ({"fsdp": -1, "tensor": -1}, r"to fsdp and tensor, .*: add fsdp=1 \(--fsdp=1 of a server, "),
        ({"data": -1, "fsdp": 1, "tensor": -1}, r"to data and tensor, .*: add tensor=1 .*--config\.mesh\.tensor=1\)$"),
        ({"data": -1, "tensor": -1}, r"to data and fsdp and tensor, .*: add fsdp=1 and tensor=1 \("),
    ],
)
def test_the_remaining_devices_are_left_to_one_axis(axes: dict, says: str):
    with pytest.raises(InputError, match=says):
        sharding.make_mesh(**axes)


@pytest.mark.parametrize(("of_devices", "groups"), [((0, 0), "2"), ((0, 0, 0, 1), "3, 1")])
def test_slices_that_are_not_those_of_the_devices_are_refused(of_devices: tuple[int, ...], groups: str):
    devices = [SimpleNamespace(slice_index=number) for number in of_devices]
    with pytest.raises(InputError, match=f"^config.mesh.slices is 2, but the devices come in groups of {groups}$"):
        sharding.make_mesh(data=2, slices=2, devices=devices)


def test_parameters_that_a_mesh_does_not_divide_are_named():
    mesh = jax.sharding.AbstractMesh((1, 5, 1), sharding.AXES)
    with pytest.raises(InputError, match="does not divide a parameter with axes vocab 64, embed 64"):
        sharding.param_shardings(CONFIG, mesh)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"embd": "fsdp"}, "config.mesh.rules.embd is of no logical axis; did you mean embed?"),
        ({"embed": "model"}, "config.mesh.rules.embed is 'model', but 'model' is not an axis of the mesh"),
        ({"kv_heads": "none"}, "config.mesh.rules.heads is 'tensor' and config.mesh.rules.kv_heads 'none'"),
        ({"heads": "fsdp"}, "config.mesh.rules.heads is 'fsdp' and config.mesh.rules.kv_heads 'tensor'"),
        ({"vocab": "fsdp"}, "config.mesh.rules.batch and config.mesh.rules.vocab both split over 'fsdp'"),
        ({"batch": "data,fsdp,tensor"}, "config.mesh.rules.batch and config.mesh.rules.vocab both split over 'tensor'"),
    ],
)
def test_a_wrong_rule_is_named(rules: dict[str, str], message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        sharding.rules_of(MeshConfig(rules=rules))


def test_rules_of_the_config_take_the_place_of_the_default_ones():
    rules = dict(sharding.rules_of(MeshConfig(rules={"vocab": "none", "mlp": "tensor, fsdp"})))
    assert rules == dict(sharding.RULES) | {"vocab": None, "mlp": ("tensor", "fsdp")}


def test_heads_go_together_and_rows_take_an_axis_that_the_vocabulary_leaves():
    alike = dict(sharding.rules_of(MeshConfig(rules={"heads": "none", "kv_heads": "none"})))
    assert alike == dict(sharding.RULES) | {"heads": None, "kv_heads": None}
    moved = dict(sharding.rules_of(MeshConfig(rules={"vocab": "none", "batch": "data,fsdp,tensor"})))
    assert moved["batch"] == ("data", "fsdp", "tensor")


def test_slices_split_the_replicas():
    with pytest.raises(InputError, match="does not fit 2 slices, which must divide its 1 replicas"):
        sharding.make_mesh(slices=2)


if __name__ == "__main__":
    assert jax.device_count() == DEVICES
    print(json.dumps(differences(sys.argv[1], SHAPES_OF[sys.argv[1]])))
