"""Checks everything that is cheap to check before the base's weights are loaded."""

from rich.console import Console

from aligner_jax.data.batch import PairBatch
from aligner_jax.data.documents import make_document
from aligner_jax.data.pairs import as_preference
from aligner_jax.data.sources import Example, Text, load_first
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError
from aligner_jax.files.content import exists
from aligner_jax.model.config import LlamaConfig, llama_config
from aligner_jax.peft.artifact import read_shapes
from aligner_jax.runtime.config import TrainConfig
from aligner_jax.tasks.first_adapter import check_saved
from aligner_jax.tasks.objectives import objective_of
from aligner_jax.weights.base import form_of, locate
from aligner_jax.weights.hub import download, is_hub_name

_SMALL_FILES = ["*.json", "tokenizer.model", "*.jinja"]


def check_early(config: TrainConfig, console: Console) -> None:
    """Reads the first records of the data, and the headers of the base and of the adapters that the config names.

    Loading a base takes minutes, after which these errors would be late. A row longer than the base's context is no
    error, since only packed rows use the rest; a line says so.

    Raises:
      InputError: a path does not exist or holds something else than the config needs.
    """
    if config.base.model is not None:
        llama_config(config.base.model)
    examples = _first_examples(config)
    model, tokenizer = _header(config)
    check_saved(config, model)
    objective, options = objective_of(config)
    reference = getattr(options, "reference", None)
    if reference not in (None, "base", "initial"):
        read_shapes(reference, model)
    if objective.batch is PairBatch:
        for example in examples:
            as_preference(example)
    for example in examples[:1]:
        make_document(example, tokenizer, config.data.template, loss_on=config.data.loss_on, system=config.data.system)
    if sentence := beyond_context(config, model.context_length):
        console.out(sentence)


def beyond_context(config: TrainConfig, context_length: int) -> str:
    """Returns a sentence if rows are longer than the base's context, else ""."""
    length = config.data.sequence_length
    if length <= context_length:
        return ""
    rest = "packed rows hold several" if config.data.packing else "the rest of every row stays empty"
    return (
        f"data: config.data.sequence_length is {length:,}, and the base's context {context_length:,}: documents have "
        f"at most {context_length:,} tokens, and {rest}"
    )


def _first_examples(config: TrainConfig) -> list[Example]:
    """Returns the first examples of the training and of the held-out file, those of the training file first."""
    data, examples = config.data, []
    for path in (data.path, data.heldout_path):
        if path is not None:
            examples += load_first(path, data.format, data.fields).examples
    if config.report.form is not None and any(isinstance(example.record, Text) for example in examples):
        raise InputError(
            f"config.report.form is {config.report.form!r}, but the texts of {data.path} have no questions to answer"
        )
    return examples


def _header(config: TrainConfig) -> tuple[LlamaConfig, Tokenizer]:
    """Returns the base's architecture and its tokenizer. Of a hub's model only the small files are downloaded."""
    path = config.base.path
    is_remote = not exists(path) and is_hub_name(path)
    local = download(path, "base model", _SMALL_FILES) if is_remote else locate(path)
    form = form_of(local)
    tokenizer = form.tokenizer(local)
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer (tokenizer.json or tokenizer.model), and text needs one")
    return form.config(local), tokenizer
