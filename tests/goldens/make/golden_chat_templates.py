"""Writes tests/goldens/chat_templates/expected.json: conversations as transformers renders them.

    PEER_PYTHON tests/goldens/make/golden_chat_templates.py

The templates beside it are modelled on published ones.
"""

import datetime
import json
import pathlib

import jinja2.ext
from transformers.utils import chat_template_utils

FOLDER = pathlib.Path(__file__).parents[1] / "chat_templates"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
CONVERSATIONS = {
    "one": [{"role": "user", "content": " Hi there\n"}],
    "turns": [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4 <ok> & 'é'"},
        {"role": "user", "content": "漢字 😀"},
        {"role": "assistant", "content": " So long "},
    ],
    "system": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
        {"role": "assistant", "content": "e"},
        {"role": "user", "content": "f"},
    ],
    "tools": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "abcdefghi", "function": {"name": "weather", "arguments": {"city": "Paris", "n": 1}}}
            ],
        },
        {"role": "tool", "content": '{"sun": true}', "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Sunny."},
    ],
}


def main() -> None:
    """Renders every template with every conversation, with and without the generation prompt."""
    rows = []
    for path in sorted(FOLDER.glob("*.jinja")):
        template = chat_template_utils._compile_jinja_template(path.read_text())
        template.globals["strftime_now"] = datetime.datetime(2024, 7, 26).strftime
        for name, messages in CONVERSATIONS.items():
            for prompts in (False, True):
                try:
                    text = template.render(
                        messages=messages, tools=None, documents=None, add_generation_prompt=prompts, **TOKENS
                    )
                except (jinja2.TemplateError, TypeError):
                    text = None
                rows.append({"template": path.name, "conversation": name, "prompts": prompts, "text": text})
    lines = ",\n".join(json.dumps(row) for row in rows)
    (FOLDER / "expected.json").write_text(
        f'{{"tokens": {json.dumps(TOKENS)},\n"conversations": {json.dumps(CONVERSATIONS)},\n"rows": [\n{lines}]}}\n'
    )
    print(f"{len(rows)} renderings, {sum(row['text'] is None for row in rows)} refused")


if __name__ == "__main__":
    main()
