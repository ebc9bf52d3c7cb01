"""Sources of training examples, one per module: published data sets and formats of local files."""

from aligner_jax.data.sources.example import Conversation, Example, Instruction, Message, Preference, Text
from aligner_jax.data.sources.load import Dataset, load_dataset, load_examples, load_first
from aligner_jax.data.sources.registry import SOURCES, find_source
from aligner_jax.data.sources.source import Source
from aligner_jax.data.sources.split import prompt_of, split_by_prompt, without_repeats

__all__ = [
    "SOURCES",
    "Conversation",
    "Dataset",
    "Example",
    "Instruction",
    "Message",
    "Preference",
    "Source",
    "Text",
    "find_source",
    "load_dataset",
    "load_examples",
    "load_first",
    "prompt_of",
    "split_by_prompt",
    "without_repeats",
]
