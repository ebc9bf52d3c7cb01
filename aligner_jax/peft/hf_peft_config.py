"""adapter_config.json of a Hugging Face PEFT folder: what it asks for, and refusal of what is not supported."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from aligner_jax.errors import InputError
from aligner_jax.peft import lora

FILE = "adapter_config.json"
MODULES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
"""The targets of `lora`, as modules of a layer of transformers' LLaMA."""
LAYER = "model.layers.{l}."
"""What comes before a module's name."""
_NAMES = ", ".join(module.rpartition(".")[2] for module in MODULES.values())

_KINDS = {"LORA": "lora", "ADAPTION_PROMPT": "llama_adapter"}
_ATTENTION = "self_attn"

# Fields that a reader may pass over: names and versions, how numbers were initialized, and the two that have a value
# although nothing uses them.
_IDLE = {
    "peft_type", "peft_version", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision",
    "init_lora_weights", "eva_config", "loftq_config", "layers_pattern", "megatron_core", "qalora_group_size",
}  # fmt: skip
_READ = {
    "lora": {"r", "lora_alpha", "lora_dropout", "use_rslora", "target_modules", "layers_to_transform"},
    "llama_adapter": {"adapter_len", "adapter_layers", "target_modules"},
}
_REASONS = {
    "bias": "trained biases beside LoRA are not supported",
    "modules_to_save": "whole modules beside LoRA are not supported",
    "use_dora": "DoRA is not supported",
    "rank_pattern": "ranks that differ between modules are not supported",
    "alpha_pattern": "scales that differ between modules are not supported",
    "fan_in_fan_out": "the projections of a LLaMA are not transposed",
    "exclude_modules": "name the modules in target_modules instead",
    "lora_bias": "biases of LoRA's factors are not supported",
}
_UNSET = (None, False, "none")
# Other initializations change the base's own weights, which this project never does.
_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


class PeftConfig:
    """The JSON object in a folder's adapter_config.json.

    Attributes:
      file: where it is.
      values: its fields.
      method: "lora" or "llama_adapter".
    """

    def __init__(self, folder: Path):
        """Reads it and refuses fields that mean something this project does not compute.

        Raises:
          InputError: there is no such file, it is not a JSON object, or a field asks for what is not supported.
        """
        self.file = folder / FILE
        self.values = _read(self.file)
        kind = self.values.get("peft_type")
        if not isinstance(kind, str) or kind not in _KINDS:
            self.refuse("peft_type", f"only {' and '.join(_KINDS)} can be read")
        self.method: str = _KINDS[kind]
        for name, value in self.values.items():
            is_set = value not in _UNSET and value != [] and value != {}
            if is_set and name not in _IDLE | _READ[self.method]:
                self.refuse(name, _REASONS.get(name, "what that asks for is not supported"))
        if self.values.get("init_lora_weights") not in _INITIALIZATIONS:
            self.refuse("init_lora_weights", "that initialization changes the weights of the base")

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Raises InputError: file, field, its value and why it cannot be."""
        raise InputError(f"{self.file}: {name} is {self.values.get(name)!r}: {reason}")

    def whole(self, name: str) -> int:
        """A field that is a whole number of at least one. Raises InputError otherwise."""
        value = self.values.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(name, "it should be a whole number of at least 1")
        return value

    def lora_options(self, num_layers: int) -> dict[str, Any]:
        """The options of `lora`; absent fields have PEFT's defaults.

        Raises:
          InputError: the targets are not the same projections in all layers, or among them is something else.
        """
        return {
            "rank": self.values.get("r", 8),
            "alpha": self.values.get("lora_alpha", 8),
            "dropout": self.values.get("lora_dropout", 0.0),
            "rslora": bool(self.values.get("use_rslora")),
            "targets": self._targets(num_layers),
        }

    def check_attention(self) -> None:
        """Raises InputError unless an AdaptionPrompt is at the attention of LLaMA's layers."""
        if self.values.get("target_modules") not in (None, _ATTENTION):
            self.refuse("target_modules", f"in a LLaMA prompts are at {_ATTENTION!r}")

    def _targets(self, num_layers: int) -> tuple[str, ...]:
        layers = self.values.get("layers_to_transform")
        if layers not in (None, []):
            listed = layers if isinstance(layers, list) else [layers]
            if not all(layer in listed for layer in range(num_layers)):
                self.refuse("layers_to_transform", f"LoRA in some of the {num_layers} layers only is not supported")
        wanted = self._patterns()
        targets = []
        for target, module in MODULES.items():
            names = [LAYER.format(l=layer) + module for layer in range(num_layers)]
            found = [any(pattern.fullmatch(name) for pattern in wanted.values()) for name in names]
            if any(found) and not all(found):
                self.refuse(
                    "target_modules", f"LoRA on {module} in some of the {num_layers} layers only is not supported"
                )
            targets += [target] if all(found) else []
        reachable = [LAYER.format(l=layer) + module for layer in range(num_layers) for module in MODULES.values()]
        for name, pattern in wanted.items():
            outside = any(pattern.fullmatch(other) for other in ("lm_head", "model.embed_tokens"))
            if outside or not any(pattern.fullmatch(module) for module in reachable):
                self.refuse("target_modules", f"{name!r} is not among {_NAMES}")
        return tuple(targets)

    def _patterns(self) -> dict[str, re.Pattern[str]]:
        """As PEFT has it: a string is a regular expression of whole names, and a list has names' endings."""
        wanted = self.values.get("target_modules")
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            wanted = list(MODULES.values())
        if isinstance(wanted, list) and wanted and all(isinstance(name, str) for name in wanted):
            return {name: re.compile(rf"(.*\.)?{re.escape(name)}") for name in wanted}
        if not isinstance(wanted, str):
            self.refuse("target_modules", f"it should name modules among {_NAMES}")
        try:
            return {wanted: re.compile(wanted)}
        except re.error as error:
            self.refuse("target_modules", f"it is not a regular expression ({error})")


def lora_config(options: Mapping[str, Any], base_name: str | None) -> str:
    """adapter_config.json for `lora` with these options."""
    return _text(
        base_name,
        peft_type="LORA",
        bias="none",
        fan_in_fan_out=False,
        init_lora_weights=True,
        lora_alpha=options["alpha"],
        lora_dropout=options["dropout"],
        modules_to_save=None,
        r=options["rank"],
        target_modules=[MODULES[target].rpartition(".")[2] for target in lora.TARGETS if target in options["targets"]],
        use_rslora=options["rslora"],
    )


def adaption_prompt_config(num_tokens: int, num_layers: int, base_name: str | None) -> str:
    """adapter_config.json for an AdaptionPrompt in the last `num_layers` layers."""
    return _text(
        base_name,
        peft_type="ADAPTION_PROMPT",
        adapter_layers=num_layers,
        adapter_len=num_tokens,
        target_modules=_ATTENTION,
    )


def _text(base_name: str | None, **fields: Any) -> str:
    fields |= {"base_model_name_or_path": base_name, "inference_mode": True, "task_type": "CAUSAL_LM"}
    return json.dumps(fields, indent=2, sort_keys=True) + "\n"


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file.parent} is no folder of a PEFT adapter: {FILE} ({error.strerror})") from None
    except ValueError as error:
        raise InputError(f"{file} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{file} is not a JSON object")
    return values
