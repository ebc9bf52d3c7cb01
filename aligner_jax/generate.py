"""Answers prompts with a base and an adapter; streams the text to the terminal.

python -m aligner_jax.generate --base=PATH --adapter=runs/quickstart/adapter.safetensors --prompt="Why is the sky blue?"

Prompts have the template that the adapter records; without an adapter, the base's own chat template if it has one.
A line on stderr names the template.
"""

import sys
from collections.abc import Mapping
from typing import Any, cast

from absl import flags

from aligner_jax.data.prompt_format import PromptFormat, Recording
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.decoding.sampler import sample
from aligner_jax.errors import InputError, one_line, printable
from aligner_jax.model.quantized import KINDS
from aligner_jax.peft import with_strength
from aligner_jax.peft.artifact import read_artifact
from aligner_jax.runtime import command, platform
from aligner_jax.weights.base import Base, load_base

BASE = flags.DEFINE_string(
    "base", None, "The base: a folder of Hugging Face, Meta or Orbax, a .gguf file or a hub name."
)
ADAPTER = flags.DEFINE_string(
    "adapter",
    None,
    "An adapter: a .safetensors, a .pth, a folder of a run or of PEFT, or a hub name; without one, the base alone "
    "answers.",
)
PROMPT = flags.DEFINE_multi_string("prompt", None, "Text to continue or answer; may be given several times.")
STRENGTH = flags.DEFINE_float("strength", 1.0, "Multiplies what the adapter adds: 0 is the base, 1 the adapter.")
TEMPLATE = flags.DEFINE_enum(
    "template", "auto", ["auto", "none", *TEMPLATES],
    "Template of the prompt. auto: the one that the adapter records; without an adapter, the base's chat template, or "
    "none if it has none. none: the text is continued as it is.",
)  # fmt: skip
SYSTEM = flags.DEFINE_string("system", None, "System prompt of the chat template, instead of the recorded one.")
MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Tokens at most.", lower_bound=1)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy.", lower_bound=0.0)
TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among the k most probable tokens; 0: all.", lower_bound=0)
TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample among the fewest tokens with this much probability.")
SEED = flags.DEFINE_integer("seed", 0, "The same seed gives the same text.", lower_bound=0)
DTYPE = flags.DEFINE_enum("dtype", "auto", platform.DTYPES, "Dtype of the base; auto: what the device does best.")
QUANTIZATION = flags.DEFINE_enum("quantization", "none", ["none", *KINDS], "Quantization of the base's projections.")
GROUP_SIZE = flags.DEFINE_integer("group_size", 32, "Numbers that share a scale in int4.", lower_bound=2)


def main() -> None:
    if not BASE.value or not PROMPT.value:
        raise InputError("give a base and a prompt: --base=PATH --prompt='…'")
    dtype = platform.compute_dtype(cast(Any, DTYPE.value))
    if ADAPTER.value:
        # Read now, and again with the base: what is wrong is reported before the base is loaded.
        first = read_artifact(ADAPTER.value, on_host=True)
        PromptFormat.resolve(cast(str, TEMPLATE.value), SYSTEM.value, {ADAPTER.value: first})
    base = load_base(BASE.value, dtype, quantization=QUANTIZATION.value, group_size=cast(int, GROUP_SIZE.value))
    adapter, recorded = None, {}
    if ADAPTER.value:
        artifact = read_artifact(ADAPTER.value, base)
        adapter = with_strength(artifact.adapter, STRENGTH.value)
        recorded = {ADAPTER.value: artifact}
    prompt_format, why = _prompt_format(base, recorded)
    command.say_once(f"template: {prompt_format.template} ({why})")
    prompts = PROMPT.value
    if base.tokenizer is not None:
        prompts = [prompt_format.render(prompt, base.tokenizer) for prompt in prompts]
    texts = sample(
        base, adapter, prompts, max_new_tokens=MAX_NEW_TOKENS.value, temperature=TEMPERATURE.value, top_k=TOP_K.value,
        top_p=TOP_P.value, seed=SEED.value, on_tokens=_streamer(base) if len(prompts) == 1 else None,
    )  # fmt: skip
    if len(prompts) == 1:
        print()
    for prompt, text in zip(PROMPT.value, texts, strict=True):
        if len(prompts) > 1:
            print(_shown(f"── {prompt}\n{text.strip()}\n"))
        if not text.strip():
            command.say_once(_empty(prompt, text, prompt_format, base))


def _prompt_format(base: Base, recorded: Mapping[str, Recording]) -> tuple[PromptFormat, str]:
    """Returns the format of the prompts, and who chose its template."""
    template, why = cast(str, TEMPLATE.value), "as --template says"
    has_template = base.tokenizer is not None and base.tokenizer.chat_template is not None
    if template == "auto" and recorded:
        why = "as the adapter was trained"
    elif template == "auto":
        template = "chat" if has_template else "none"
        why = "the base's own" if has_template else "the base has no chat template, so the text is continued as it is"
    return PromptFormat.resolve(template, SYSTEM.value, recorded), why


def _empty(prompt: str, text: str, prompt_format: PromptFormat, base: Base) -> str:
    """Returns a warning about an empty answer: its cause and a remedy."""
    why = "all its tokens are white space" if text else "the model's first token ended it"
    other = "none" if prompt_format.template == "chat" else "chat"
    if other == "chat" and (base.tokenizer is None or base.tokenizer.chat_template is None):
        other = "alpaca" if prompt_format.template == "none" else "none"
    return one_line(
        f"the answer to {prompt!r} is empty: {why}. The model may have learned other prompts than those of the "
        f"template {prompt_format.template}; try --template={other}, or --temperature=0.7"
    )


def _shown(text: str) -> str:
    """Escapes control characters if stdout is a terminal, where they could move the cursor."""
    return printable(text) if sys.stdout.isatty() else text


def _streamer(base: Base):
    if base.tokenizer is None:
        return None
    decode = base.tokenizer.stream_decoder()

    def write(tokens: list[int | None]) -> None:
        if tokens[0] is not None:
            sys.stdout.write(_shown(decode(tokens[0])))
            sys.stdout.flush()

    return write


if __name__ == "__main__":
    command.run(main)
