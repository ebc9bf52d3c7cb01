"""Analyzes adapters: writes figures (PNG and SVG), tables (CSV and JSON), and one HTML page with all of them.

python -m aligner_jax.analyze --adapter=A [--adapter=B …] --out=DIR
python -m aligner_jax.analyze --adapter=A [--adapter=B …] --base=PATH [--data=HELDOUT] --out=DIR
python -m aligner_jax.analyze --run=DIR [--run=DIR2 …] --out=DIR

Without a base: gates by layer and head, entries and directions that adapters share, effective rank. With a base also:
an adapter's contribution to the residual stream, the tokens that it promotes, hidden states with and without it. With
held-out data also: form against knowledge. With --run: losses, learning rate and speed of training runs, sweeps too,
also while they run. docs/analysis.md explains every figure.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from absl import flags
from rich.console import Console

from aligner_jax.analysis import about_adapters, about_base, about_runs, curves
from aligner_jax.analysis.named import Named, load_named
from aligner_jax.analysis.report import Section
from aligner_jax.analysis.write import PAGE, check_folder, show, write
from aligner_jax.data.prompt_format import PromptFormat
from aligner_jax.data.sources import Example, load_dataset
from aligner_jax.data.templates import TEMPLATES
from aligner_jax.errors import InputError
from aligner_jax.model.quantized import KINDS
from aligner_jax.runtime import command, platform
from aligner_jax.runtime.files import place
from aligner_jax.runtime.output import wide_console
from aligner_jax.runtime.waiting import stages
from aligner_jax.weights.base import load_base

ADAPTER = flags.DEFINE_multi_string(
    "adapter",
    None,
    "An adapter: a .safetensors, a .pth, a folder of a run or of PEFT, or a hub name; may be given several times.",
)
BASE = flags.DEFINE_string(
    "base",
    None,
    "The base that all the adapters are for: a folder of Hugging Face, Meta or Orbax, a .gguf or hub name.",
)
RUN = flags.DEFINE_multi_string(
    "run", None, "The folder of a training run, whose curves are drawn; may be given several times."
)
OUT = flags.DEFINE_string("out", None, "The folder to write.")
OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replaces the files of an earlier analysis in --out.")
DATA = flags.DEFINE_string("data", None, "Held-out examples, in any format that training reads; with --base.")
FORMAT = flags.DEFINE_string("format", "auto", "Format of --data: auto, or a source's name.")
EXAMPLES = flags.DEFINE_integer("examples", 64, "Examples of --data at most, from its beginning.", lower_bound=4)
TEMPLATE = flags.DEFINE_enum(
    "template",
    "auto",
    ["auto", "none", *TEMPLATES],
    "Template of the prompts. auto: the one that the adapters' files record.",
)
SYSTEM = flags.DEFINE_string("system", None, "System prompt of the chat template, instead of the recorded one.")
SEQUENCE_LENGTH = flags.DEFINE_integer("sequence_length", 512, "Tokens of an example at most.", lower_bound=8)
OPENING = flags.DEFINE_integer("opening", 5, "First tokens of an answer that count as form.", lower_bound=0)
TOP_TOKENS = flags.DEFINE_integer("top_tokens", 10, "Promoted and demoted tokens to show.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the maps of hidden states.", lower_bound=0)
DTYPE = flags.DEFINE_enum("dtype", "float32", platform.DTYPES, "Dtype of the base; auto: what the device does best.")
QUANTIZATION = flags.DEFINE_enum("quantization", "none", ["none", *KINDS], "Quantization of the base's projections.")
GROUP_SIZE = flags.DEFINE_integer("group_size", 32, "Numbers that share a scale in int4.", lower_bound=2)


def main() -> None:
    if RUN.value:
        if not OUT.value:
            raise InputError("say where to write the curves of --run: --out=DIR")
        _draw_runs(RUN.value, place(OUT.value, "--out"))
        return
    if not ADAPTER.value or not OUT.value:
        raise InputError("give an adapter and where to write: --adapter=PATH --out=DIR")
    _check_flags()
    folder, console = place(OUT.value, "--out"), wide_console()
    # Adapters are read now, and again with the base: wrong files and prompt formats are reported before it is loaded.
    named = load_named(ADAPTER.value)
    prompt_format = _prompt_format(named) if BASE.value else None
    examples = _examples(console) if DATA.value else None
    check_folder(folder, overwrite=OVERWRITE.value)
    with stages() as say:
        title = f"Analysis of {', '.join(one.name for one in named)}"
        sections = _sections(named, examples, prompt_format, say)
        say("writing the files")
        written = write(folder, title, sections)
    _show(sections, written, folder, console)
    for missing in _left_out():
        console.out(missing)


def _draw_runs(runs: Sequence[str], folder: Path) -> None:
    if ADAPTER.value or BASE.value or DATA.value:
        raise InputError("--run draws the curves of a run; give --adapter with its flags in a call of its own")
    courses = curves.read_courses(runs)
    check_folder(folder, overwrite=OVERWRITE.value)
    sections = about_runs.sections(courses)
    written = write(folder, f"Training of {', '.join(course.label for course in courses)}", sections)
    _show(sections, written, folder, wide_console())


def _show(sections: Sequence[Section], written: Sequence[Path], folder: Path, console: Console) -> None:
    show(sections, console)
    console.out(f"{len(written)} files written; the page is {folder / PAGE}")


def _sections(
    named: Sequence[Named],
    examples: Sequence[Example] | None,
    prompt_format: PromptFormat | None,
    say: Callable[[str], None],
) -> list[Section]:
    sections: list[Section] = []
    if BASE.value and prompt_format is not None:
        dtype = platform.compute_dtype(cast(Any, DTYPE.value))
        say(f"loading {BASE.value}")
        base = load_base(BASE.value, dtype, quantization=QUANTIZATION.value, group_size=cast(int, GROUP_SIZE.value))
        named = load_named(cast(list[str], ADAPTER.value), base)
        looking = about_base.Looking(
            prompt_format, sequence_length=cast(int, SEQUENCE_LENGTH.value), opening=cast(int, OPENING.value),
            top_tokens=cast(int, TOP_TOKENS.value), seed=cast(int, SEED.value),
        )  # fmt: skip
        sections = about_base.sections(base, named, examples, looking, say)
    return [*about_adapters.sections(named, say), *sections]


def _check_flags() -> None:
    """Refuses flags that would have no effect."""
    needs_base = (
        "data", "template", "system", "sequence_length", "top_tokens", "seed", "dtype", "quantization", "group_size",
    )  # fmt: skip
    for name in () if BASE.value else needs_base:
        if flags.FLAGS[name].present:
            raise InputError(f"--{name} is of what adapters do to their base: add --base=PATH")
    for name in () if DATA.value else ("format", "examples", "opening"):
        if flags.FLAGS[name].present:
            raise InputError(f"--{name} is of held-out data: add --data=FILE")


def _prompt_format(named: Sequence[Named]) -> PromptFormat:
    recorded = {str(one.path): one for one in named}
    return PromptFormat.resolve(cast(str, TEMPLATE.value), SYSTEM.value, recorded)


def _examples(console: Console) -> list[Example]:
    dataset = load_dataset(cast(str, DATA.value), cast(str, FORMAT.value))
    examples = dataset.examples[: EXAMPLES.value]
    console.out(f"data: {DATA.value}, {dataset}; the first {len(examples):,} are looked at")
    return examples


def _left_out() -> list[str]:
    if not BASE.value:
        return ["what the adapters add to their base, and how it moves tokens and hidden states: add --base=PATH"]
    if not DATA.value:
        return ["form against knowledge needs held-out answers: add --data=FILE"]
    return []


if __name__ == "__main__":
    command.run(main)
