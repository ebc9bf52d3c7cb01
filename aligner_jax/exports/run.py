"""Exports adapters over their base: checks the request, writes the folder, and uploads it if asked."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.errors import InputError
from aligner_jax.exports import summary
from aligner_jax.exports.adapter_folder import fill_adapter_folder
from aligner_jax.exports.canary import NO_BASE, NO_TOKENS, measure_export, write_canary
from aligner_jax.exports.card import CardBase
from aligner_jax.exports.engines import added_bias, engine_lines, gguf_engines
from aligner_jax.exports.forms import EXPORT_FORMS, ExportForm
from aligner_jax.exports.gguf import architecture_of
from aligner_jax.exports.hub import check_push, push
from aligner_jax.exports.job import Job
from aligner_jax.exports.model_card import ModelExport, model_card
from aligner_jax.exports.nearest import Nearest, approximate, read_heldout
from aligner_jax.exports.request import ExportRequest
from aligner_jax.exports.run_folder import RunFolder, read_run_folder, run_beside
from aligner_jax.exports.source import StoredBase, load_whole, open_stored
from aligner_jax.files.content import exists
from aligner_jax.model.config import LlamaConfig
from aligner_jax.peft import Adapter, with_strength
from aligner_jax.peft.artifact import Artifact, read_artifact
from aligner_jax.peft.canary import Canary
from aligner_jax.peft.gated import GatedOptions
from aligner_jax.peft.sum import parts_of
from aligner_jax.runtime.files import new_folder
from aligner_jax.runtime.waiting import Waiting
from aligner_jax.weights.finite import check_finite
from aligner_jax.weights.gguf import GGUF
from aligner_jax.weights.hub import is_hub_name


def export(request: ExportRequest, say: Callable[[str], None]) -> Path:
    """Writes the folder of an export, complete or not at all, and uploads it if a repository is named.

    Args:
      request: the choices.
      say: called with every sentence for the user.

    Returns:
      The folder.

    Raises:
      InputError: choices do not go together, base or adapter cannot be read or do not fit, or the folder cannot be
        written.
    """
    request.check()
    out, repository = request.out, request.push
    if repository:
        check_push(repository)
    with new_folder(out) as folder, Waiting(f"exporting to {out}", lines=False):
        write = _write_adapter if request.to == "adapter" else _write_form
        sentences = write(request, folder, repository or out.name)
    for sentence in [*sentences, f"written to {out}"]:
        say(sentence)
    if repository:
        say(f"uploaded to {push(out, repository, private=not request.public)}")
    return out


def _write_adapter(request: ExportRequest, folder: Path, name: str) -> list[str]:
    base = open_stored(request.base) if request.base else None
    artifact = read_artifact(request.adapters[0], base)
    known = base or artifact.base
    card_base = _card_base(request, [artifact], known and known.config)
    if base is not None:
        card_base = dataclasses.replace(card_base, fingerprint=base.fingerprint)
    canary, sentences = None, []
    if "canary" not in artifact.metadata:
        if base is not None:
            job = Job(base, (artifact.adapter,), "o", base.stored_dtype)
            _, canary = measure_export(job, [artifact])
        if canary is None:
            sentences = [NO_TOKENS if base is not None else NO_BASE]
    fill_adapter_folder(folder, artifact, name, card_base, base=base, run=_run(request, [artifact]), canary=canary)
    return [str(artifact.adapter), *sentences]


def _write_form(request: ExportRequest, folder: Path, name: str) -> list[str]:
    base, form = open_stored(cast(str, request.base)), EXPORT_FORMS[request.to]
    artifacts = [read_artifact(path, base) for path in request.adapters]
    _check_bias(request, artifacts)
    adapters = tuple(_with_strength(artifact, request.strength_or_one) for artifact in artifacts)
    # The content of the card is read first, so that an error in it does not come after the weights are written.
    card_base, run = _card_base(request, artifacts, base.config), _run(request, artifacts)
    nearest = _nearest(request, base, artifacts[0], adapters[0]) if request.nearest else None
    if nearest is not None:
        adapters = (nearest.bias,)
    chosen = request.dtype or "stored"
    keeps_types = request.to == "gguf" and base.form is GGUF
    dtype = base.stored_dtype if chosen == "stored" and not keeps_types else chosen
    job = Job(base, adapters, request.bias or "o", dtype, card_base.hub_name)
    written = form.write(job, folder)
    difference, canary = _measured(request, folder, job, form, artifacts)
    if canary is not None:
        write_canary(folder, canary)
    else:
        written = [*written, NO_TOKENS]
    told = [*map(str, adapters), *([] if nearest is None else [str(nearest)])]
    if difference is None:
        return [*told, *written]
    rounding = summary.rounding(job, difference, "base and adapter" if nearest is None else "base and bias")
    notes = [f"{note[0].upper()}{note[1:]}." for note in [*told[len(adapters) :], rounding]]
    types = "its own types" if keeps_types else dtype
    card_export = ModelExport(
        cast(Any, request.to), job.fold, types, request.strength_or_one, notes, nearest is not None,
        architecture=architecture_of(base), has_canary=canary is not None,
    )  # fmt: skip
    card = model_card(artifacts, card_export, name, card_base, run)
    (folder / "README.md").write_text(card, encoding="utf-8")
    bias = added_bias(base.config, job.fold.folded_config)
    engines = {"hf": engine_lines(bias), "gguf": [f"engines: {gguf_engines(bias, card_export.architecture)}"]}.get(
        request.to, []
    )
    return [*told, *summary.changes(job), *written, rounding, *engines]


def _nearest(request: ExportRequest, stored: StoredBase, artifact: Artifact, adapter: Adapter) -> Nearest:
    prompt_format = PromptFormat.resolve(request.template or "auto", None, {str(artifact.path): artifact})
    base = load_whole(stored)
    heldout = read_heldout(cast(str, request.data), request.rows or 256, base, prompt_format)
    return approximate(base, adapter, heldout)


def _measured(
    request: ExportRequest, folder: Path, job: Job, form: ExportForm, artifacts: list[Artifact]
) -> tuple[float | None, Canary | None]:
    if not form.is_base and not job.can_be_folded and request.strength_or_one == 1 and artifacts[0].canary is not None:
        # A PEFT folder of one adapter, whose own file has the canary.
        return None, artifacts[0].canary
    return measure_export(job, artifacts, open_stored(str(folder / form.file)) if form.is_base else None)


def _card_base(request: ExportRequest, artifacts: list[Artifact], config: LlamaConfig | None) -> CardBase:
    name = request.base_model
    if name is None and request.base and is_hub_name(request.base) and not exists(request.base):
        name = request.base
    fingerprints = [artifact.base.fingerprint for artifact in artifacts if artifact.base is not None]
    return CardBase(name, config, fingerprints[0] if fingerprints else None)


def _run(request: ExportRequest, artifacts: list[Artifact]) -> RunFolder | None:
    if request.run:
        return read_run_folder(request.run)
    return run_beside(artifacts[0].path) if len(artifacts) == 1 else None


def _check_bias(request: ExportRequest, artifacts: list[Artifact]) -> None:
    parts = [part for artifact in artifacts for part in parts_of(artifact.adapter)]
    if request.bias == "v" and not any(isinstance(part.options, GatedOptions) for part in parts):
        raise InputError(
            "--bias=v has no effect on these adapters: it is of the prefix tokens of Aligners and LLaMA-Adapters"
        )


def _with_strength(artifact: Artifact, strength: float) -> Adapter:
    adapter = with_strength(artifact.adapter, strength)
    for name, x in adapter.trainable.items():
        check_finite(np.asarray(x), f"{artifact.path} with --strength={strength:g}: {name}")
    return adapter
