"""cuDNN's attention: its calls are JAX's own, its support is declared. Comparison needs a card: `kernels.trusted`."""

import contextlib
import json
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as of_jax
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from aligner_jax.model.attention import attend
from aligner_jax.model.kernels import cards, cudnn
from aligner_jax.model.kernels.kernel import Inputs, Unsupported

OURS_ALONE = {"force_deterministic": True}
"""Fields of the configuration of the backward call that differ from JAX's."""


def calls(function, *arguments) -> list[tuple[str, dict]]:
    """Returns operands, layouts and results, and the configuration of each cuDNN call, lowered for CUDA."""
    program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    found = []
    for line in re.findall(r"custom_call @__cudnn.*", program):
        config = re.search(r'backend_config = "([^"]*)"', line)
        assert config is not None
        fields = json.loads(config[1].replace("\\22", '"'))["cudnn_fmha_backend_config"]
        found.append((re.sub(r"%[\w#]+", "%", line.replace(config[0], "")), without_defaults(fields)))
    return found


def without_defaults(fields: dict) -> dict:
    """Returns the fields that differ from a protocol buffer's defaults, and no seed: nothing is drawn."""
    fields = {key: without_defaults(value) if isinstance(value, dict) else value for key, value in fields.items()}
    defaults = ([], {}, 0, "0", False, "PRIMITIVE_TYPE_INVALID")
    return {key: value for key, value in fields.items() if value not in defaults and key != "seed"}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("packed", [False, True], ids=["", "packed"])
def test_the_calls_are_those_that_jax_makes(monkeypatch: pytest.MonkeyPatch, dtype: str, packed: bool):
    """XLA's contract with these calls is JAX's, so a release of JAX that changes it fails here."""
    monkeypatch.setattr(of_jax, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(of_jax, "check_is_flash_attention", lambda *args, **options: None)
    q, kv = (jax.ShapeDtypeStruct((2, 256, n, 64), dtype) for n in (4, 2))
    segments_bt = jax.ShapeDtypeStruct((2, 256), jnp.int32) if packed else None

    def by_jax(q, k, v, segments_bt, do):
        mask = None if segments_bt is None else segments_bt[:, None, :, None] == segments_bt[:, None, None, :]

        def attention(q, k, v):
            causal = of_jax.MaskType.CAUSAL
            return of_jax.dot_product_attention(q, k, v, mask=mask, scale=64**-0.5, mask_type=causal)

        o, pull = jax.vjp(attention, q, k, v)
        return o, pull(do)

    def ours(q, k, v, segments_bt, do):
        o, pull = jax.vjp(lambda *x: attend(*x, segment_ids_bt=segments_bt, implementation="cudnn"), q, k, v)
        return o, pull(do)

    arguments = q, kv, kv, segments_bt, q
    (forward, backward), (wanted_forward, wanted_backward) = calls(ours, *arguments), calls(by_jax, *arguments)
    assert forward == wanted_forward
    assert backward == (wanted_backward[0], wanted_backward[1] | OURS_ALONE)
    name = cudnn.FORWARD_MASKED if packed else cudnn.FORWARD
    assert f"@{name}(" in forward[0]


@pytest.mark.parametrize(
    ("changed", "packed", "reason"),
    [
        ({"dtype": "float32"}, False, "bfloat16 and float16, not float32"),
        ({"head_dim": 256}, False, "head dims up to 128 that 8 divides, not 256"),
        ({"head_dim": 36}, False, "not 36"),
        ({"before": 3}, False, "no joint softmax"),
        ({"length": 201}, True, "packed rows of an even length, not 201"),
    ],
)
def test_what_cudnn_does_not_support_is_refused_with_the_reason(changed: dict, packed: bool, reason: str):
    def inputs(length=200, head_dim=96, dtype="bfloat16", before=0):
        q, kv = (jax.ShapeDtypeStruct((2, s, n, head_dim), dtype) for s, n in ((length, 4), (length + before, 2)))
        return Inputs(q, kv, kv, jax.ShapeDtypeStruct((2, length), jnp.int32) if packed else None)

    cudnn.check_supported(inputs())
    with pytest.raises(Unsupported, match=reason):
        cudnn.check_supported(inputs(**changed))


@pytest.mark.parametrize(("kind", "supported"), [("Tesla T4", False), ("NVIDIA A100", True), ("NVIDIA L4", True)])
def test_auto_leaves_cudnn_out_for_cards_before_compute_capability_8(kind: str, supported: bool):
    q, kv = (jax.ShapeDtypeStruct((2, 256, n, 64), "float16") for n in (4, 2))
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=AbstractDevice(kind, None, "cuda"))):
        found = calls(lambda *x: attend(*x), q, kv, kv)
        assert len(found) == supported
        with contextlib.nullcontext() if supported else pytest.raises(Unsupported, match=r"8.0 and up, not 7.5"):
            calls(lambda *x: attend(*x, implementation="cudnn"), q, kv, kv)


def test_a_card_whose_name_jax_does_not_know_has_the_capability_that_it_states(monkeypatch: pytest.MonkeyPatch):
    q, kv = (jax.ShapeDtypeStruct((2, 256, n, 64), "float16") for n in (4, 2))
    monkeypatch.setattr(cards, "cards", lambda: [SimpleNamespace(compute_capability="7.0")])
    with pytest.raises(Unsupported, match=r"8.0 and up, not 7.0"):
        cudnn.check_supported(Inputs(q, kv, kv))
    monkeypatch.setattr(cards, "cards", lambda: [SimpleNamespace(compute_capability="12.0")])
    cudnn.check_supported(Inputs(q, kv, kv))


def test_a_bias_masks_pairs_of_different_segments_alone():
    """Ids may have any order, and may return; cuDNN's own mask is the causal one."""
    ids_bt = jnp.asarray([[3, 3, 1, 3], [0, 0, 0, 2]])
    for dtype in ("bfloat16", "float16"):
        (bias_b1ts,) = cudnn._bias(ids_bt, jnp.dtype(dtype))
        assert bias_b1ts.dtype == dtype
        same_bts = ids_bt[:, :, None] == ids_bt[:, None, :]
        assert (jnp.where(same_bts, bias_b1ts[:, 0] == 0, bias_b1ts[:, 0] <= -(2**15))).all()


def test_a_batch_of_calls_is_a_loop():
    """A vmapped call keeps the shapes that cuDNN knows."""
    q, kv = (jax.ShapeDtypeStruct((3, 2, 128, n, 64), jnp.bfloat16) for n in (4, 2))
    ((call, _),) = calls(jax.vmap(lambda *x: attend(*x, implementation="cudnn")), q, kv, kv)
    assert "-> (tensor<2x4x128x64xbf16>" in call
