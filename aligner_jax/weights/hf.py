"""Loads Hugging Face folders: config.json and safetensors, one file or an index of several."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, is_file
from aligner_jax.files.fields import Fields
from aligner_jax.files.json_text import read_object
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.weights.assemble import assemble
from aligner_jax.weights.form import Form
from aligner_jax.weights.hf_config import hf_config
from aligner_jax.weights.leaves import Finish, Shardings
from aligner_jax.weights.safetensors_header import safetensors_sources
from aligner_jax.weights.source import Checkpoint, Format, Slot, Source

_LAYER = "model.layers.{l}."

FORMAT = Format(
    slots={
        "model.embed_tokens.weight": Slot("embed_vd", "vd"),
        _LAYER + "input_layernorm.weight": Slot("attn_norm_ld", "d"),
        _LAYER + "self_attn.q_proj.weight": Slot("q_ldnh", "(nh)d"),
        _LAYER + "self_attn.k_proj.weight": Slot("k_ldkh", "(kh)d"),
        _LAYER + "self_attn.v_proj.weight": Slot("v_ldkh", "(kh)d"),
        _LAYER + "self_attn.o_proj.weight": Slot("o_lnhd", "d(nh)"),
        _LAYER + "self_attn.q_proj.bias": Slot("q_bias_lnh", "(nh)"),
        _LAYER + "self_attn.k_proj.bias": Slot("k_bias_lkh", "(kh)"),
        _LAYER + "self_attn.v_proj.bias": Slot("v_bias_lkh", "(kh)"),
        _LAYER + "self_attn.o_proj.bias": Slot("o_bias_ld", "d"),
        _LAYER + "post_attention_layernorm.weight": Slot("mlp_norm_ld", "d"),
        _LAYER + "mlp.gate_proj.weight": Slot("gate_ldf", "fd"),
        _LAYER + "mlp.up_proj.weight": Slot("up_ldf", "fd"),
        _LAYER + "mlp.down_proj.weight": Slot("down_lfd", "df"),
        "model.norm.weight": Slot("norm_d", "d"),
        "lm_head.weight": Slot("head_dv", "vd"),
    },
    decoders={
        "F32": lambda rows: rows.view(np.float32),
        "BF16": lambda rows: rows.view(jnp.bfloat16),
        "F16": lambda rows: rows.view(np.float16),
    },
    # Rotary frequencies, which old versions of transformers saved. They follow from the configuration.
    ignored=(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
    redundant={"lm_head.weight": "model.embed_tokens.weight"},
)


def load_hf(
    path: Path, dtype: str = "float32", *, shardings: Shardings = None, finish: Finish = None
) -> tuple[LlamaConfig, Params]:
    """Loads a model from a folder with config.json and model.safetensors or model.safetensors.index.json.

    The host never holds more than the model in `dtype` and a few megabytes.

    Args:
      dtype, shardings, finish: see `assemble`.

    Raises:
      InputError: the architecture is not LLaMA's, or a file or tensor is missing, truncated, unknown, duplicated or of
        the wrong shape.
    """
    return assemble(open_hf(path), dtype, shardings=shardings, finish=finish)


def open_hf(path: Path) -> Checkpoint:
    """Opens the files of a folder without loading the weights.

    Raises:
      InputError: see `load_hf`.
    """
    return Checkpoint(hf_config(path), hf_sources(path), FORMAT, path)


def hf_sources(path: Path) -> list[Source]:
    """Returns every tensor of the folder's safetensors files, unread.

    Raises:
      InputError: there are no such files, or one is missing, truncated, or contradicts the index.
    """
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if is_file(single):
        return safetensors_sources(single)
    if not is_file(index):
        pickles = next(path.glob("*.bin"), None)
        hint = f"; {pickles.name} is a pickle, save the model as safetensors" if pickles else ""
        raise InputError(f"{path} has neither {single.name} nor {index.name}{hint}")
    named: dict[str, set[str]] = {}
    for tensor, shard in _weight_map(index).items():
        named.setdefault(shard, set()).add(tensor)
    sources = []
    for shard in sorted(named):
        if not is_file(path / shard):
            raise InputError(f"{index} names {shard}, which is not in the folder")
        held = safetensors_sources(path / shard)
        lacking = named[shard] - {source.name for source in held}
        if lacking:
            raise InputError(f"{index} says that {shard} holds tensor {min(lacking)}, but it does not")
        sources += held
    return sources


def _weight_map(index: Path) -> dict[str, str]:
    found = Fields(read_object(index, most=MEBIBYTE), index).section("weight_map")
    if found is None or not found.values:
        raise InputError(f"{index} has no weight_map, which says where tensors are")
    shards = {tensor: found.text(tensor) for tensor in found.values}
    for tensor, shard in shards.items():
        if Path(shard).name != shard or len(shard) > 255 or not shard.isprintable() or shard[-12:] != ".safetensors":
            raise found.error(tensor, f"is {shard[:300]!r}, which is no safetensors file of this folder")
    return shards


HF = Form(
    description="a Hugging Face folder (config.json and model.safetensors)",
    detect=lambda path: is_file(path / "config.json"),
    config=hf_config,
    load=load_hf,
    open=open_hf,
)
