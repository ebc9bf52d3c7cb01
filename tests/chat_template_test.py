"""Chat templates: honest ones render as transformers renders them, and all others end soon with one sentence."""

import json
import time
from pathlib import Path

import pytest

from aligner_jax.data.chat_template import MOST_CHARACTERS, render
from aligner_jax.errors import InputError

FOLDER = Path(__file__).parent / "goldens" / "chat_templates"
GOLDENS = json.loads((FOLDER / "expected.json").read_text())
TEMPLATES = {path.name: path.read_text() for path in sorted(FOLDER.glob("*.jinja"))}
HELLO = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("row", GOLDENS["rows"], ids=lambda row: " ".join(map(str, list(row.values())[:3])))
def test_templates_render_as_in_transformers(row):
    messages = GOLDENS["conversations"][row["conversation"]]
    arguments = TEMPLATES[row["template"]], messages, row["prompts"], GOLDENS["tokens"]
    if row["text"] is None:
        with pytest.raises(InputError, match="refuses the conversation"):
            render(*arguments)
    else:
        assert render(*arguments) == row["text"]
