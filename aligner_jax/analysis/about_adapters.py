"""Builds the sections that need no base: gates, common entries, effective rank."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from aligner_jax.analysis import adapter_figures
from aligner_jax.analysis.entries import UPDATES, Shared, compare
from aligner_jax.analysis.gates import Gates, gates_of
from aligner_jax.analysis.named import Named, file_names
from aligner_jax.analysis.rank import entropy_rank, fresh_spectrum, participation_ratio, spectra
from aligner_jax.analysis.report import Section, Table
from aligner_jax.peft import METHODS, Adapter

_BARS = "▁▂▃▄▅▆▇█"
_MATRICES = {
    ("tokens_pd", "identical"): "identical entries of the shared tokens",
    ("tokens_pd", "cosine"): "cosine of the shared tokens",
    ("tokens_lpd", "identical"): "identical entries of each layer's tokens",
    ("tokens_lpd", "cosine"): "cosine of each layer's tokens",
    ("gates_ln", "cosine"): "cosine of the gates",
    (UPDATES, "cosine"): "cosine of the weight updates",
}


def sections(named: Sequence[Named], say: Callable[[str], None] = lambda _: None) -> list[Section]:
    """Returns all sections that need no base; for a single adapter, without the comparison of pairs.

    Args:
      named: the adapters.
      say: called with a few words before every slow step.
    """
    say("gates")
    made = [_overview(named), _gates(named)]
    if len(named) > 1:
        say("what adapters have in common")
        made.append(_common(named))
    say("effective rank")
    return [*made, _rank(named)]


def _overview(named: Sequence[Named]) -> Section:
    rows = []
    for one in named:
        leaves = [np.asarray(leaf) for leaf in one.adapter.trainable.values()]
        exact = sum(int(np.sum(_is_bfloat16(leaf))) for leaf in leaves) / max(one.adapter.num_params, 1)
        options = ", ".join(f"{name} {_words(value)}" for name, value in _chosen(one.adapter))
        rows.append((one.name, one.adapter.method, options, one.adapter.num_params, exact, str(one.path)))
    columns = ("adapter", "method", "options", "trained numbers", "exact in bfloat16", "file")
    text = (
        "An adapter whose numbers are all exact in bfloat16 was trained in it: most updates are smaller than half a "
        "step of that type and round away, so many entries stay as they were initialized."
    )
    return Section("The adapters", text, tables=[Table("adapters", "Adapters", columns, rows)])


def _is_bfloat16(x: np.ndarray) -> np.ndarray:
    """Returns True for entries that bfloat16 represents exactly: the last 16 bits of their float32 are zero."""
    return np.ascontiguousarray(x, np.float32).view(np.uint32) & 0xFFFF == 0


def _chosen(adapter: Adapter) -> list[tuple[str, object]]:
    """Returns the options that differ from the method's defaults, and always num_tokens, rank and start_layer."""
    defaults = METHODS[adapter.method].options().as_dict()
    always = ("num_tokens", "rank", "start_layer")
    return [
        (name, value)
        for name, value in adapter.options.as_dict().items()
        if name in always or value != defaults.get(name)
    ]


def _words(value: object) -> str:
    return "/".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _gates(named: Sequence[Named]) -> Section:
    text = (
        "A gate weighs what one head of one layer takes from the adapter's tokens; at 0 the layer is the base's. The "
        "map shows every gate, white at 0. Above it are the mean over the heads and one standard deviation to either "
        "side. The paper found that the spread grows with depth: the trend is Spearman's rank correlation of spread "
        "and layer, 1 where it grows from each layer to the next."
    )
    found = {one.name: (i, gates) for i, one in enumerate(named) if (gates := gates_of(one.adapter)) is not None}
    if without := [one.name for one in named if one.name not in found]:
        text += f" No gates have: {', '.join(without)}."
    if not found:
        return Section("Gates by layer and head", text)
    columns = ("adapter", "layers", "mean", "largest size", "spread at first", "spread at last", "largest spread",
               "at layer", "trend")  # fmt: skip
    rows = [_gate_row(name, gates) for name, (_, gates) in found.items()]
    every = [
        (name, int(layer), *(float(x) for x in (mean, std, row.min(), row.max())))
        for name, (_, gates) in found.items()
        for layer, mean, std, row in zip(gates.layers_l, gates.mean_l, gates.std_l, gates.gates_ln, strict=True)
    ]
    files = file_names("gates", named)
    pictures = [adapter_figures.gate_map(files[i], name, gates) for name, (i, gates) in found.items()]
    if any(len(gates.layers_l) > 1 for _, gates in found.values()):
        pictures.append(adapter_figures.gate_spreads(found))
    return Section(
        "Gates by layer and head",
        text,
        pictures,
        [
            Table("gates", "Gates; spread is the standard deviation over a layer's heads", columns, rows),
            Table("gates_by_layer", "Gates of every layer",
                  ("adapter", "layer", "mean", "spread", "smallest", "largest"), every, brief=False),
        ],
        ["spread by layer", *(f"  {_bars(gates.std_l)}  {name}" for name, (_, gates) in found.items())],
    )  # fmt: skip


def _bars(sizes_l: np.ndarray) -> str:
    return "".join(_BARS[min(int(8 * x / (sizes_l.max() or 1)), 7)] for x in sizes_l)


def _gate_row(name: str, gates: Gates) -> tuple:
    first, last, highest = gates.std_l[0], gates.std_l[-1], int(np.argmax(gates.std_l))
    layers = f"{gates.layers_l[0]} to {gates.layers_l[-1]}"
    return (
        name, layers, float(gates.gates_ln.mean()), float(np.abs(gates.gates_ln).max()), float(first), float(last),
        float(gates.std_l[highest]), int(gates.layers_l[highest]), gates.trend,
    )  # fmt: skip


def _common(named: Sequence[Named]) -> Section:
    text = (
        "Entries that two adapters have bit for bit alike were moved by neither training, or never drawn apart: two "
        "runs that begin with the same seed in bfloat16 leave most of their tokens' entries where they were. “By "
        "chance” is the same share with one of the two shifted by one place. The cosine compares directions, without "
        "regard to size. Where adapters have different numbers of shared tokens, those compared are the first ones, "
        "which both have. LoRA's updates are compared as products, since its factors can be turned freely."
    )
    rows = []
    matrices = {title: np.full((len(named), len(named)), np.nan) for title in _MATRICES.values()}
    for (i, first), (j, second) in itertools.combinations(enumerate(named), 2):
        for shared in compare(first.adapter, second.adapter):
            rows.append(_shared_row(first.name, second.name, shared))
            for kind in ("identical", "cosine"):
                title, value = _MATRICES.get((shared.array, kind)), getattr(shared, kind)
                if title is not None and value is not None:
                    matrices[title][i, j] = matrices[title][j, i] = value
    if not rows:
        return Section("What they have in common", f"{text} No two of these have arrays of one name and shape.")
    columns = ("first", "second", "array", "entries", "identical", "by chance", "cosine")
    drawn = {title: matrix for title, matrix in matrices.items() if not np.isnan(matrix).all()}
    pictures = [adapter_figures.similarities([one.name for one in named], drawn)] if drawn else []
    return Section("What they have in common", text, pictures, [Table("pairs", "Pairs of adapters", columns, rows)])


def _shared_row(first: str, second: str, shared: Shared) -> tuple:
    return first, second, shared.array, shared.entries, shared.identical, shared.by_chance, shared.cosine


def _rank(named: Sequence[Named]) -> Section:
    text = (
        "How many directions p tokens span, from 1 to p. By entropy: exp(−Σ q ln q) of the singular values' shares q "
        "(Roy and Vetterli 2007). Participation ratio: (Σ σ²)² / Σ σ⁴, in which small directions count for less. Of "
        "several matrices (one a layer) they are means. “Fresh” is that of as many tokens drawn from N(0, 1): "
        "what is close to it has learned little, or has learned it everywhere alike. The option init_std scales fresh "
        "tokens, which changes neither number. With the option init “words” tokens start as embeddings of the base, "
        "and “fresh” does not say where they started."
    )
    rows, lines, fresh = [], {}, {}
    single: dict[str, None] = {}
    for i, one in enumerate(named):
        trained = one.adapter.trainable
        for array, sigma_mp in spectra(one.adapter).items():
            p = sigma_mp.shape[1]
            if p == 1:
                # Both numbers are 1, whatever the adapter has learned.
                single[one.name] = None
                continue
            of_fresh: tuple[float | None, float | None] = (None, None)
            if array == "tokens":
                count, width = trained["tokens_pd" if "tokens_pd" in trained else "tokens_lpd"].shape[-2:]
                reference_p = fresh_spectrum(count, width)
                of_fresh = float(entropy_rank(reference_p)), float(participation_ratio(reference_p))
                fresh[f"fresh tokens, {count} × {width:,}"] = reference_p
            lines[f"{one.name}, {array}"] = i, sigma_mp.mean(axis=0)
            means = float(entropy_rank(sigma_mp).mean()), float(participation_ratio(sigma_mp).mean())
            rows.append((one.name, array, len(sigma_mp), p, *means, *of_fresh))
    if single:
        text += f" Arrays with a single direction, of one token or rank 1, are left out: {', '.join(single)}."
    if not rows:
        return Section("Effective rank", f"{text} None of these has several tokens or low-rank updates.")
    columns = ("adapter", "of", "matrices", "p", "by entropy", "participation ratio", "fresh, by entropy",
               "fresh, participation")  # fmt: skip
    return Section(
        "Effective rank",
        text,
        [adapter_figures.spectra(lines, fresh)],
        [Table("effective_rank", "Effective rank", columns, rows)],
    )
