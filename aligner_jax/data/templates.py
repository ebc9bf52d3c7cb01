"""Renders examples as text, with the parts that are targets marked."""

import re
from collections.abc import Callable
from typing import NamedTuple

from aligner_jax.data.sources.example import Example, Instruction, Message, Text
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError

type Segments = list[tuple[str, bool]]
"""Consecutive pieces of a text, each with True if it is a target. No token spans two pieces."""

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)


def segments(example: Example, tokenizer: Tokenizer, template: str, system: str | None = None) -> Segments:
    """Returns the example's text in pieces, up to the end of its last target. A plain text is one piece, the target.

    The caller adds EOS, and BOS by `Tokenizer.encode(first, bos=tokenizer.add_bos)`, which does not double the BOS that
    a chat template writes.

    Args:
      example: example of any source.
      tokenizer: tokenizer of the base, with the chat template for "chat".
      template: one of `TEMPLATES`, or "none". "none": the question as it is, with the answer directly after it.
        "alpaca": the prompt of Stanford Alpaca, with the answer directly after `### Response:` as in the paper's code.
        Both take conversations of one question and one answer. "chat": the tokenizer's chat template; targets are the
        assistant's turns with their end tokens. If the generation prompt opens a thought (`<think>`) that finished
        turns lack, the answer begins by ending it.
      system: system turn of the chat template, for an example that has none; it replaces the template's default.

    Raises:
      InputError: the template is unknown, or the example does not fit it; the message names file and line.
    """
    chosen = _template(template)
    if isinstance(example.record, Text):
        if system is not None:
            raise InputError(f"{example.where}: a plain text has no place for a system prompt; leave data.system out")
        return [(example.record.text, True)]
    return chosen.segments(example, tokenizer, system)


def render_prompt(
    prompt: str, tokenizer: Tokenizer, template: str, *, system: str | None = None, input: str = ""
) -> str:
    """Returns the text before the answer to `prompt`, the same as in training.

    Encode it with `bos=tokenizer.add_bos`.

    Raises:
      InputError: see `segments`.
    """
    return render_example_prompt(Example(Instruction(prompt, input, ""), "the prompt"), tokenizer, template, system)


def render_example_prompt(example: Example, tokenizer: Tokenizer, template: str, system: str | None = None) -> str:
    """Returns the text before the example's last answer, "" for a plain text; see `render_prompt`."""
    if isinstance(example.record, Text):
        return ""
    return _template(template).prompt(example, tokenizer, system)


class Template(NamedTuple):
    """Functions of a template: `segments` and `render_example_prompt` dispatch to them."""

    segments: Callable[[Example, Tokenizer, str | None], Segments]
    prompt: Callable[[Example, Tokenizer, str | None], str]


def _template(name: str) -> Template:
    if name == "none":
        return _NONE
    if name not in TEMPLATES:
        raise InputError(f"the template {name!r} is unknown; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


def _plain(example: Example, tokenizer: Tokenizer, system: str | None) -> Segments:
    if system is not None:
        raise InputError("the template 'none' has no place for a system prompt")
    roles = [message["role"] for message in example.messages()]
    if roles != ["user", "assistant"]:
        raise InputError(
            f"{example.where}: the template 'none' takes one user and one assistant turn, not {', '.join(roles)}"
        )
    return [(example.question, False), (example.answer, True)]


def _plain_prompt(example: Example, tokenizer: Tokenizer, system: str | None) -> str:
    return _plain(example, tokenizer, system)[0][0]


def _alpaca(example: Example, tokenizer: Tokenizer, system: str | None) -> Segments:
    if system is not None:
        raise InputError("the template 'alpaca' has no place for a system prompt")
    record = example.record
    if not isinstance(record, Instruction):
        roles = [message["role"] for message in example.messages()]
        if roles != ["user", "assistant"]:
            raise InputError(
                f"{example.where}: the template 'alpaca' takes one user and one assistant turn, not {', '.join(roles)}"
            )
        record = Instruction(example.question, "", example.answer)
    prompt = _WITH_INPUT if record.input else _WITHOUT_INPUT
    return [(prompt.format(instruction=record.instruction, input=record.input), False), (record.output, True)]


def _alpaca_prompt(example: Example, tokenizer: Tokenizer, system: str | None) -> str:
    return _alpaca(example, tokenizer, system)[0][0]


def _chat_prompt(example: Example, tokenizer: Tokenizer, system: str | None) -> str:
    return _rendered(example, tokenizer, _with_system(example.messages_before_answer(), system), True)


def _with_system(messages: list[Message], system: str | None) -> list[Message]:
    if system is None or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": system}, *messages]


def _chat(example: Example, tokenizer: Tokenizer, system: str | None) -> Segments:
    messages = _with_system(example.messages(), system)
    ends = [tokenizer.backend.token(i) for i in tokenizer.stop_ids]
    pieces: Segments = []
    done = ""
    for i, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _rendered(example, tokenizer, messages[:i], True)
        through = _rendered(example, tokenizer, messages[: i + 1], False)
        if not before.startswith(done):
            raise InputError(
                f"{example.where}: the chat template writes the messages before message {i + 1} differently once more "
                "messages follow, so its answer cannot be told from its prompt"
            )
        if through.startswith(before):
            answer = _through_end(through[len(before) :], message["content"], ends)
        else:
            answer = _after_opened_thought(example, messages, i, before, through, ends)
        pieces += [(before[len(done) :], False), (answer, message.get("learned", True))]
        done = before + answer
    return pieces


def _after_opened_thought(
    example: Example, messages: list[Message], i: int, before: str, through: str, ends: list[str]
) -> str:
    """Returns the answer to a generation prompt that opens a thought which finished turns lack, as DeepSeek-R1's does.

    Training then has the same prompt as generation. The answer begins with the rest of the thought, which is empty if
    the record has none.
    """
    opened = re.search(r"<think>\s*\Z", before)
    if opened is None or not through.startswith(before[: opened.start()]):
        raise InputError(
            f"{example.where}: the chat template's generation prompt ends in {before[-40:]!r}, which is not how it "
            f"begins message {i + 1} once that is written, so no training text continues the prompt that the model is "
            "given; put a chat_template.jinja beside the tokenizer in which both are the same"
        )
    if sum(message["role"] == "assistant" for message in messages) > 1:
        raise InputError(
            f"{example.where}: the chat template's generation prompt opens a thought, of which earlier answers keep "
            "nothing: make a record of each answer, with the messages before it in the user's turn"
        )
    content = messages[i]["content"]
    thought, _, said = content.rpartition("</think>")
    thought = thought.split("<think>")[-1].strip("\n")
    whole = f"<think>\n{thought}\n</think>\n\n"
    turn = _through_end(through[opened.start() :], said, ends)
    # Some templates keep the thought of a finished turn; without this it would be there twice.
    turn = turn.rpartition("</think>")[2].lstrip("\n")
    return (whole.removeprefix(opened[0]) if whole.startswith(opened[0]) else whole.removeprefix("<think>\n")) + turn


def _rendered(example: Example, tokenizer: Tokenizer, messages: list[Message], prompts: bool) -> str:
    """Returns the rendered messages, with the BOS that the template writes; `Tokenizer.encode` does not double it."""
    said = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return tokenizer.render_chat(said, add_generation_prompt=prompts)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from error


def _through_end(turn: str, content: str, ends: list[str]) -> str:
    """Returns a rendered assistant turn, cut after its end token if the template writes one."""
    start = max(turn.find(content.strip()), 0) + len(content.strip())
    found = [(turn.index(end, start), end) for end in ends if end in turn[start:]]
    if not found:
        return turn
    position, end = min(found)
    return turn[: position + len(end)]


TEMPLATES: dict[str, Template] = {"alpaca": Template(_alpaca, _alpaca_prompt), "chat": Template(_chat, _chat_prompt)}
_NONE = Template(_plain, _plain_prompt)
