"""Builds the sections that need the base: shifts, tokens, hidden states, form against knowledge."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from aligner_jax.analysis import base_figures
from aligner_jax.analysis.form_and_knowledge import (
    KINDS,
    LEAST_ANSWERS,
    Change,
    by_place,
    changes,
    classify,
    target_losses,
)  # fmt: skip
from aligner_jax.analysis.hidden_states import displacement, maps
from aligner_jax.analysis.named import BASE, Named, file_names
from aligner_jax.analysis.promoted import Moved, logit_shift, moved, probability_shift
from aligner_jax.analysis.prompts import default_examples, tokenize_prompts
from aligner_jax.analysis.report import Section, Table
from aligner_jax.analysis.shifts import Seen, cosines, look
from aligner_jax.data.documents import tokenize_examples
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.sources import Example
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.peft import Adapter
from aligner_jax.weights.base import Base

_PLACES = 32
_MAX_LINES = 10


@dataclasses.dataclass(frozen=True)
class Looking:
    """Settings of an analysis of adapters with their base.

    Attributes:
      prompt_format: template and system prompt of prompts and answers.
      sequence_length: maximum tokens of an example; longer examples lose their end, longer prompts their beginning.
      prompts: number of prompts on which shifts and hidden states are measured.
      opening: number of first tokens of an answer that count as form.
      top_tokens: number of promoted and of demoted tokens that are shown.
      seed: seed of t-SNE and PCA.
    """

    prompt_format: PromptFormat
    sequence_length: int = 512
    prompts: int = 32
    opening: int = 5
    top_tokens: int = 10
    seed: int = 0


def sections(
    base: Base,
    named: Sequence[Named],
    examples: Sequence[Example] | None,
    looking: Looking,
    say: Callable[[str], None] = lambda _: None,
) -> list[Section]:
    """Returns all sections that need the base.

    Args:
      base: base with its tokenizer.
      named: adapters for this base.
      examples: held-out examples, whose prompts are used and on whose answers the loss is measured; None uses default
        prompts and leaves out the section on form against knowledge.
      looking: settings of the analysis.
      say: called with a few words before every slow step.

    Raises:
      InputError: the base has no tokenizer or no embedding of a token, an example does not fit the template, or a
        model's hidden states are not finite.
    """
    if base.tokenizer is None:
        raise InputError("the base has no tokenizer (tokenizer.json or tokenizer.model), and prompts need one")
    models = {BASE: None, **{one.name: one.adapter for one in named}}
    chosen = (default_examples() if examples is None else examples)[: looking.prompts]
    texts = tokenize_prompts(chosen, base.tokenizer, looking.prompt_format, longest=looking.sequence_length)
    seen = {}
    for name, adapter in models.items():
        say(f"{name}: {len(chosen)} prompts, {int(texts.lengths_b.sum()):,} tokens")
        seen[name] = look(base.params, adapter, texts, config=base.config)
        if not seen[name].is_finite:
            owner = "the base" if adapter is None else "the adapter"
            raise InputError(f"{name}: hidden states that are not finite; numbers of {owner} are too large")
    alone = seen.pop(BASE)
    say("what the adapters add: figures")
    where = f"{len(chosen)} prompts of the data" if examples is not None else f"the {len(chosen)} default prompts"
    made = [_shifts(seen, where)]
    if len(named) > 1:
        made.append(_directions(seen))
    say("promoted and demoted tokens")
    made.append(_tokens(base, base.tokenizer, named, alone, seen, looking))
    say("maps of hidden states")
    made.append(_hidden(alone, seen, looking))
    if examples is not None:
        made.append(_form(base, base.tokenizer, models, examples, looking, say))
    return made


def _shifts(seen: Mapping[str, Seen], where: str) -> Section:
    text = (
        "What the adapter itself puts into the residual stream in each layer, over what the layer receives; how later "
        "layers respond is no part of it. Of an Aligner it is W_O (g ⊙ softmax(q Kᵀ/√h) V), and with one token the "
        "constant vector W_O (g ⊙ V), the same at every position: its constancy, the norm of the mean over the mean "
        f"norm, is 1. Measured on all tokens of {where}; the line is the median, the band holds 80 % of the tokens."
    )
    rows, every = [], []
    for name, one in seen.items():
        quantiles_lq = np.quantile(one.relative_lx, [0.1, 0.5, 0.9], axis=1).T
        constancy_l, norms_l = one.constancy_l, one.norm_lx.mean(axis=1)
        layers_l = np.flatnonzero(one.adapted_l)
        for layer in layers_l:
            numbers = (norms_l[layer], *quantiles_lq[layer], constancy_l[layer])
            every.append((name, int(layer), *map(float, numbers)))
        if not len(layers_l):
            rows.append((name, 0, None, None, None, None))
            continue
        largest = int(layers_l[np.argmax(quantiles_lq[layers_l, 1])])
        whole = float(np.median(quantiles_lq[layers_l, 1]))
        rows.append((name, len(layers_l), whole, float(quantiles_lq[largest, 1]), largest,
                     float(np.mean(constancy_l[layers_l]))))  # fmt: skip
    return Section(
        "What the adapter adds",
        text,
        [base_figures.shifts(seen)] if any(one.adapted_l.any() for one in seen.values()) else [],
        [
            Table("shifts", "Added over received: medians over tokens",
                  ("adapter", "layers", "median layer", "largest", "at layer", "mean constancy"), rows),
            Table("shifts_by_layer", "Every layer",
                  ("adapter", "layer", "mean norm", "relative, 10 %", "relative, median", "relative, 90 %",
                   "constancy"), every, brief=False),
        ],
    )  # fmt: skip


def _directions(seen: Mapping[str, Seen]) -> Section:
    text = (
        "The cosine, a layer, between the mean vectors that two adapters add: 1 where they push the same way, 0 where "
        "they have nothing to do with each other, which for vectors of this width means within a few hundredths."
    )
    found = {f"{a} · {b}": cosines(seen[a], seen[b]) for a, b in itertools.combinations(seen, 2)}
    names = list(itertools.combinations(seen, 2))
    rows, every = [], []
    for (a, b), cosine_l in zip(names, found.values(), strict=True):
        there_l = np.flatnonzero(~np.isnan(cosine_l))
        every += [(a, b, int(layer), float(cosine_l[layer])) for layer in there_l]
        values = cosine_l[there_l]
        ends = (float(values.mean()), float(values.min()), float(values.max())) if len(values) else (None,) * 3
        rows.append((a, b, len(there_l), *ends))
    drawn = {pair: x for pair, x in list(found.items())[:_MAX_LINES] if not np.isnan(x).all()}
    if len(found) > _MAX_LINES:
        text += f" The figure has the first {_MAX_LINES} of {len(found)} pairs, the tables have all."
    return Section(
        "Direction against the other adapters",
        text,
        [base_figures.directions(drawn)] if drawn else [],
        [
            Table("directions", "Cosines over the layers that both adapt",
                  ("first", "second", "layers", "mean", "smallest", "largest"), rows),
            Table("directions_by_layer", "Every layer", ("first", "second", "layer", "cosine"), every, brief=False),
        ],
    )  # fmt: skip


def _tokens(
    base: Base, tokenizer: Tokenizer, named: Sequence[Named], alone: Seen, seen: Mapping[str, Seen], looking: Looking
) -> Section:
    text = (
        "Left: the mean vectors that the adapter adds, summed over the layers and read through the base's final norm "
        "and unembedding, as if no later layer changed them: the direct effect on the logits. Right: the change of "
        "probability that was measured for an answer's first token, later layers included, averaged over the prompts. "
        "A space is ␣, a line break ⏎. The folded table reads each layer's vector by itself."
    )
    pictures, rows, every = [], [], []
    for file, one in zip(file_names("tokens", named), named, strict=True):
        adapted = seen[one.name]
        params = base.params

        def read(vector_d, count, adapted=adapted, params=params) -> Moved:
            return moved(logit_shift(params, vector_d, adapted, config=base.config), tokenizer, count)

        direct = read(adapted.mean_ld.sum(axis=0), looking.top_tokens)
        measured = moved(probability_shift(alone, adapted), tokenizer, looking.top_tokens)
        pictures.append(base_figures.tokens(file, one.name, direct, measured))
        rows += [(one.name, way, *_ends(found)) for way, found in (("direct", direct), ("measured", measured))]
        for layer in np.flatnonzero(adapted.adapted_l):
            every.append((one.name, int(layer), *_ends(read(adapted.mean_ld[layer], 5))))
    return Section(
        "Promoted and demoted tokens",
        text,
        pictures,
        [
            Table("tokens", "Most promoted and demoted", ("adapter", "effect", "promoted", "demoted"), rows),
            Table("tokens_by_layer", "Each layer's vector by itself", ("adapter", "layer", "promoted", "demoted"),
                  every, brief=False),
        ],
    )  # fmt: skip


def _ends(found: Moved) -> tuple[str, str]:
    return tuple("  ".join(f"{text} {value:+.2g}" for text, value in end) for end in found)  # pyright: ignore


def _hidden(alone: Seen, seen: Mapping[str, Seen], looking: Looking) -> Section:
    text = (
        "The residual stream at each prompt's last token, where the answer begins, of the base and of every adapted "
        "model, in two dimensions. PCA keeps directions and distances of the largest variance; t-SNE keeps who is near "
        "whom, and neither its axes nor the sizes of its gaps mean anything. The lower figure measures the same in the "
        "full width: how far states move, over their distance from their mean, and how much of the move is the same "
        "for all prompts."
    )
    found = {name: displacement(alone, one) for name, one in seen.items()}
    every = [
        (name, layer, float(one.relative_l[layer]), float(one.common_l[layer]))
        for name, one in found.items()
        for layer in range(len(one.relative_l))
    ]
    last = [row for row in every if row[1] == len(alone.mean_ld) - 1]
    pictures = [base_figures.displacements(found)]
    if len(alone.final_bd) >= 4:
        drawn = maps([alone, *seen.values()], seed=looking.seed)
        pictures.insert(0, base_figures.hidden_states([BASE, *seen], drawn))
    else:
        text += f" There are {len(alone.final_bd)} prompts, and a map needs four: there is none."
    columns = ("adapter", "layer", "move over spread", "common part")
    return Section(
        "Hidden states with and without the adapter",
        text,
        pictures,
        [
            Table("hidden_states", "After the last layer", columns, last),
            Table("hidden_states_by_layer", "After every layer", columns, every, brief=False),
        ],
    )


def _form(
    base: Base,
    tokenizer: Tokenizer,
    models: Mapping[str, Adapter | None],
    examples: Sequence[Example],
    looking: Looking,
    say: Callable[[str], None],
) -> Section:
    prompt_format = looking.prompt_format
    documents, summary = tokenize_examples(
        examples, tokenizer, prompt_format.template, sequence_length=looking.sequence_length, overlong="truncate",
        system=prompt_format.system,
    )  # fmt: skip
    targets = classify(documents, tokenizer, opening=looking.opening)
    losses = {}
    for name, adapter in models.items():
        say(f"{name}: the loss on {len(documents):,} answers")
        losses[name] = target_losses(base.params, adapter, documents, config=base.config)
    say("form against knowledge: intervals and figures")
    base_x = losses[BASE]
    text = (
        f"Held-out loss on the answers, told apart by what a token is for: the opening (an answer's first "
        f"{looking.opening} tokens), marks (no letter or digit, and ends), common words (in at least half of the "
        "answers, no digits), and content, all the rest. The first three are form, the last is what stands for "
        "knowledge. An adapter that teaches form alone lowers the first three. The interval (95 %) is of adapted − "
        "base, from drawing whole examples anew; the share is of the whole change, so shares of kinds add up to 1, and "
        f"a negative one worked against it. {summary}."
    )
    if len(documents) < LEAST_ANSWERS:
        text += f" With fewer than {LEAST_ANSWERS} answers no words are common."
    found = {name: changes(targets, base_x, adapted_x) for name, adapted_x in losses.items() if name != BASE}
    places = {name: by_place(targets, x, _PLACES) for name, x in losses.items()}
    columns = ("adapter", "tokens of", "tokens", "base", "adapted", "change", "interval", "share of the change")
    rows = [
        _form_row(name, part, of_adapter[part])
        for name, of_adapter in found.items()
        for part in (*KINDS, "form", "knowledge", "all")
    ]
    every = [
        (name, place + 1, float(loss)) for name, x in places.items() for place, loss in enumerate(x) if loss == loss
    ]
    return Section(
        "Form against knowledge",
        text,
        [base_figures.form_and_knowledge(found, places)],
        [
            Table("form_and_knowledge", "Held-out loss, nats a token", columns, rows),
            Table("loss_by_place", "By place in the answer", ("model", "place", "loss"), every, brief=False),
        ],
    )


def _form_row(name: str, part: str, change: Change | None) -> tuple:
    if change is None:
        return name, part, 0, None, None, None, None, None
    interval = f"{change.low:+.3f} to {change.high:+.3f}"
    return (name, part, change.tokens, change.base, change.adapted, change.adapted - change.base, interval,
            change.share)  # fmt: skip
