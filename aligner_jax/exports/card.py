"""Sections that the model cards (README.md) of a published adapter and of an exported model share."""

import dataclasses
from collections.abc import Mapping, Sequence

from aligner_jax.errors import InputError
from aligner_jax.exports.markup import code, yaml_number, yaml_text
from aligner_jax.exports.run_folder import RunFolder
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft.artifact import Artifact
from aligner_jax.weights.hub import is_hub_name


@dataclasses.dataclass(frozen=True)
class CardBase:
    """The base, as a card names it.

    Attributes:
      hub_name: its name on a hub ("org/name"); None if it is unknown. Paths of the user's machine are never published.
      config: its configuration; None if it is unknown.
      fingerprint: fingerprint of its weights; None if it is unknown.
    """

    hub_name: str | None = None
    config: LlamaConfig | None = None
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        if self.hub_name is not None and not is_hub_name(self.hub_name):
            raise InputError(f"{self.hub_name!r} is not the name of a model on a hub, such as org/name")

    @property
    def words(self) -> str:
        """The name as Markdown, "a base" if it is unknown."""
        return "a base" if self.hub_name is None else code(self.hub_name)


def front_matter(
    library: str, relation: str, methods: Sequence[str], name: str, base: CardBase, run: RunFolder | None
) -> str:
    """Returns the YAML block that a hub reads.

    Args:
      library: library that loads the files.
      relation: relation of the files to the base, "adapter" or "finetune".
      methods: methods of the adapters.
      name: name of the folder or repository.
      base: the base.
      run: the run whose held-out results are given.
    """
    lines = [f"library_name: {library}", "pipeline_tag: text-generation"]
    if base.hub_name is not None:
        lines += [f"base_model: {yaml_text(base.hub_name)}", f"base_model_relation: {relation}"]
    lines += ["tags:", *(f"- {yaml_text(tag)}" for tag in dict.fromkeys(("aligner_jax", *methods)))]
    if run is not None and run.heldout:
        lines += [
            "model-index:",
            f"- name: {yaml_text(name.rpartition('/')[2])}",
            "  results:",
            "  - task:",
            "      type: text-generation",
            "    dataset:",
            f"      name: {yaml_text(f'held out from {run.data}' if run.data else 'held out')}",
            "      type: held_out",
            "    metrics:",
        ]
        for metric, value in run.heldout.items():
            lines.append(f"    - type: {yaml_text(metric.removeprefix('heldout_'))}")
            lines += [f"      value: {yaml_number(value)}", f"      name: {yaml_text(metric)}"]
    return "\n".join(["---", *lines, "---"])


def adapter_section(artifact: Artifact, base: CardBase) -> str:
    """Returns the section on an adapter: method, options, base and prompts."""
    adapter = artifact.adapter
    options = ", ".join(f"{name}={value}" for name, value in adapter.options.as_dict().items())
    facts = {
        "method": code(adapter.method),
        "options": code(options) if options else "none",
        "trained numbers": f"{adapter.num_params:,}",
    }
    if base.hub_name is not None:
        facts["base"] = code(base.hub_name)
    if (config := base.config) is not None:
        facts["shape of the base"] = (
            f"{config.num_layers} layers of width {config.d_model}, {config.num_heads} query heads and "
            f"{config.num_kv_heads} kv heads, vocabulary of {config.vocab_size:,}"
        )
    if base.fingerprint is not None:
        facts["fingerprint of the base"] = code(base.fingerprint)
    if (prompts := artifact.prompt_format) is not None:
        facts["template of the prompts"] = code(prompts.template)
        if prompts.system:
            facts["system prompt"] = code(prompts.system)
    return joined("## Adapter", bullets(facts))


def training_section(run: RunFolder | None) -> str:
    """Returns the section on data, settings and held-out results; empty without a run."""
    if run is None:
        return ""
    facts = {"data": code(run.data)} if run.data else {}
    facts |= {words: code(value) for words, value in run.settings.items()}
    results = {code(name): f"{value:.6g}" for name, value in run.heldout.items()}
    after = f"On held-out data after step {run.heldout_step:,}:" if results else ""
    return joined("## Training", bullets(facts), after, bullets(results))


def bullets(facts: Mapping[str, str]) -> str:
    """Returns a list of facts; their values are Markdown."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def fenced(language: str, *lines: str) -> str:
    """Returns lines as a block of code."""
    return "\n".join([f"```{language}", *lines, "```"])


def joined(*blocks: str) -> str:
    """Returns the blocks that are not empty, with blank lines between."""
    return "\n\n".join(block for block in blocks if block)
