"""Reads, checks and writes adapter_config.json, the configuration file of Hugging Face PEFT."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from aligner_jax.errors import InputError
from aligner_jax.files.content import MEBIBYTE, is_file
from aligner_jax.files.fields import Fields, shown
from aligner_jax.files.json_text import read_object
from aligner_jax.peft import lora
from aligner_jax.peft.name_pattern import NamePattern, PatternError

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
"""Module names of the targets of `lora`, within a layer of transformers' LLaMA."""
LAYER = "model.layers.{l}."
"""Name prefix of a layer's modules."""
_NAMES = ", ".join(module.rpartition(".")[2] for module in MODULES.values())

_KINDS = {"LORA": "lora", "ADAPTION_PROMPT": "llama_adapter"}
_ATTENTION = "self_attn"

# Fields that do not change the result: names, versions, initialization, and two that are set although unused.
_IDLE = {
    "peft_type", "peft_version", "task_type", "inference_mode", "auto_mapping", "base_model_name_or_path", "revision",
    "init_lora_weights", "eva_config", "loftq_config", "layers_pattern", "megatron_core", "qalora_group_size",
}  # fmt: skip
_READ = {
    "lora": {
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
    },
    "llama_adapter": {"adapter_len", "adapter_layers", "target_modules"},
    "bias": {"r", "lora_alpha", "lora_bias", "lora_dropout", "use_rslora", "target_modules", "layers_to_transform"},
}
_REASONS = {
    "bias": "trained biases beside LoRA are not supported",
    "modules_to_save": "whole modules beside LoRA are not supported",
    "use_dora": "DoRA is not supported",
    "rank_pattern": "ranks that differ between modules are not supported",
    "alpha_pattern": "scales that differ between modules are not supported",
    "fan_in_fan_out": "the projections of a LLaMA are not transposed",
    "lora_bias": "it should be true or false",
}
# Other initializations change the base's weights, which this project never does.
_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


class PeftConfig:
    """Checked content of a folder's adapter_config.json.

    Attributes:
      fields: fields of the JSON object.
      method: "lora", "llama_adapter", or "bias" for the form that `lora_bias_config` describes.
    """

    def __init__(self, folder: Path):
        """Reads the file, and refuses fields with a meaning that this project does not support.

        Raises:
          InputError: the file does not exist, is not a JSON object, or has a field that is not supported.
        """
        file = folder / FILE
        if not is_file(file):
            raise InputError(f"{folder} is no folder of a PEFT adapter: {FILE} (No such file)")
        self.fields = Fields(read_object(file, most=MEBIBYTE), file)
        kind = self.fields.get("peft_type")
        if not isinstance(kind, str) or kind not in _KINDS:
            self.refuse("peft_type", f"only {' and '.join(_KINDS)} can be read")
        self.method: str = _KINDS[kind]
        if self.method == "lora" and self.fields.get("lora_bias") is True:
            self.method = "bias"
        for name, value in self.fields.values.items():
            if name not in _IDLE | _READ[self.method] and not _is_unset(value):
                self.refuse(name, _REASONS.get(name, "what that asks for is not supported"))
        initialization = self.fields.get("init_lora_weights")
        if not isinstance(initialization, str | bool | None) or initialization not in _INITIALIZATIONS:
            self.refuse("init_lora_weights", "that initialization changes the weights of the base")

    def refuse(self, name: str, reason: str) -> NoReturn:
        """Raises InputError that names the file, the field, its value and the reason."""
        raise self.fields.error(name, f"is {shown(self.fields.get(name))}: {reason}")

    def lora_options(self, num_layers: int) -> dict[str, Any]:
        """Returns the options of `lora`; absent fields have PEFT's defaults.

        Args:
          num_layers: number of layers of the base; the run time is proportional to it.

        Raises:
          InputError: a field has the wrong type or is out of range, the targets differ between layers, or there are
            none.
        """
        self.fields.number("lora_alpha", 8)
        return {
            "rank": self.fields.integer("r", 8),
            # An integer stays an integer, so that it is written back unchanged.
            "alpha": self.fields.get("lora_alpha") or 8,
            "dropout": self.fields.number("lora_dropout", 0.0, least=0, most=1),
            "rslora": self.fields.flag("use_rslora"),
            "targets": self._targets(num_layers),
        }

    def biases(self, num_layers: int) -> tuple[list[Literal["o", "v"]], int]:
        """Returns the projections whose bias is added, and the first layer where it is.

        Args:
          num_layers: number of layers of the base.

        Raises:
          InputError: the fields are not those that `lora_bias_config` writes for biases of "o" or "v".
        """
        names = self.fields.get("target_modules")
        targets: list[Literal["o", "v"]] = [
            target for target in ("o", "v") if isinstance(names, list) and _short_name(target) in names
        ]
        layers = self.fields.integers("layers_to_transform", least=0)
        start = layers[0] if layers else num_layers
        is_last = 0 < len(layers) == num_layers - start and layers == list(range(start, num_layers))
        scale = (self.fields.integer("r", 8), self.fields.number("lora_alpha", 8), self.fields.flag("use_rslora"))
        # The matrices are zero, so dropout before them changes nothing.
        self.fields.number("lora_dropout", 0.0, least=0, most=1)
        if not (
            targets and isinstance(names, list) and len(names) == len(targets) and is_last and scale == (1, 1, False)
        ):
            self.refuse(
                "lora_bias",
                "biases of LoRA's factors are supported in the form of `export --to=peft` only, with r and lora_alpha "
                "1, on o_proj and v_proj in the last layers",
            )
        return targets, start

    def check_attention(self) -> None:
        """Raises InputError unless an AdaptionPrompt targets the attention of LLaMA's layers."""
        if self.fields.get("target_modules") not in (None, _ATTENTION):
            self.refuse("target_modules", f"in a LLaMA prompts are at {_ATTENTION!r}")

    def _targets(self, num_layers: int) -> tuple[str, ...]:
        """Returns the adapted projections; names of unknown modules are ignored, as in PEFT."""
        self._check_layers(num_layers)
        is_wanted, is_excluded = self._wanted(), self._excluded()
        targets = []
        try:
            for target, module in MODULES.items():
                names = [LAYER.format(l=layer) + module for layer in range(num_layers)]
                wanted = [is_wanted(name) and not is_excluded(name) for name in names]
                if any(wanted) and not all(wanted):
                    self.refuse(
                        "target_modules", f"LoRA on {module} in some of the {num_layers} layers only is not supported"
                    )
                targets += [target] if all(wanted) else []
        except PatternError as error:
            self.refuse("target_modules", f"it is not a regular expression that is supported: {error}")
        if not targets:
            self.refuse("target_modules", f"it names none of {_NAMES}")
        return tuple(targets)

    def _check_layers(self, num_layers: int) -> None:
        layers = self.fields.get("layers_to_transform")
        if layers in (None, []):
            return
        if isinstance(layers, list):
            listed = self.fields.integers("layers_to_transform", least=0)
        else:
            listed = [self.fields.integer("layers_to_transform", least=0)]
        if not set(range(num_layers)) <= set(listed):
            self.refuse("layers_to_transform", f"LoRA in some of the {num_layers} layers only is not supported")
        pattern = self.fields.get("layers_pattern")
        if pattern not in (None, "", [], "layers", ["layers"]):
            self.refuse("layers_pattern", "the layers of a LLaMA are in 'layers'")

    def _wanted(self) -> Callable[[str], bool]:
        """Returns a function that is True for the module names in target_modules."""
        wanted = self.fields.get("target_modules")
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            wanted = list(MODULES.values())
        return self._matching("target_modules", wanted)

    def _excluded(self) -> Callable[[str], bool]:
        """Returns a function that is True for the module names in exclude_modules."""
        excluded = self.fields.get("exclude_modules")
        return self._matching("exclude_modules", excluded) if excluded else lambda name: False

    def _matching(self, field: str, value: object) -> Callable[[str], bool]:
        """Returns a predicate of module names: a regular expression of whole names, or a list of their suffixes."""
        if isinstance(value, str):
            try:
                return NamePattern(value).matches
            except PatternError as error:
                self.refuse(field, f"it is not a regular expression that is supported: {error}")
        if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
            self.refuse(field, f"it should name modules among {_NAMES}")
        names = set(value)

        def is_meant(name: str) -> bool:
            parts = name.split(".")
            return any(".".join(parts[start:]) in names for start in range(len(parts)))

        return is_meant


def _short_name(target: str) -> str:
    """Returns the last part of a module's name, such as "o_proj" for target "o"."""
    return MODULES[target].rpartition(".")[2]


def _is_unset(value: object) -> bool:
    """Returns True if a field's value turns nothing on. Zero is not such a value, since it may be a rate."""
    return value is None or value is False or value == "none" or (isinstance(value, list | dict) and not value)


def lora_config(options: Mapping[str, Any], base_name: str | None) -> str:
    """Returns the text of adapter_config.json for a `lora` with these options."""
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
        target_modules=[_short_name(target) for target in lora.TARGETS if target in options["targets"]],
        use_rslora=options["rslora"],
    )


def lora_bias_config(targets: Sequence[str], layers: Sequence[int], base_name: str | None) -> str:
    """Returns the text of adapter_config.json for a LoRA of rank 1 and scale 1 whose second matrix has a bias."""
    return _text(
        base_name,
        peft_type="LORA",
        bias="none",
        fan_in_fan_out=False,
        init_lora_weights=True,
        layers_to_transform=list(layers),
        lora_alpha=1,
        lora_bias=True,
        lora_dropout=0.0,
        modules_to_save=None,
        r=1,
        target_modules=[_short_name(target) for target in lora.TARGETS if target in targets],
        use_rslora=False,
    )


def adaption_prompt_config(num_tokens: int, num_layers: int, base_name: str | None) -> str:
    """Returns the text of adapter_config.json for an AdaptionPrompt in the last `num_layers` layers."""
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
