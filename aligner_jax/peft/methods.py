"""The methods by name: files with DEFAULTS, STRENGTH and the same four functions, check, shapes, init and bind."""

from types import ModuleType

from aligner_jax.peft import aligner, bias, full, llama_adapter, lora, prefix, prompt

METHODS: dict[str, ModuleType] = {
    "aligner": aligner,
    "llama_adapter": llama_adapter,
    "lora": lora,
    "prompt": prompt,
    "prefix": prefix,
    "bias": bias,
    "full": full,
}
