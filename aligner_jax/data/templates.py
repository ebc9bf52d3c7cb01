"""How an example becomes text, and which parts of the text are targets."""

import re
from collections.abc import Callable
from typing import NamedTuple

from aligner_jax.data.sources.example import Example, Instruction, Message
from aligner_jax.data.tokenizer import Tokenizer
from aligner_jax.errors import InputError

type Segments = list[tuple[str, bool]]
"""Consecutive pieces of a text, and whether each is a target. No token spans two pieces."""

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
    """Returns the example's text in pieces, up to the end of its last target.

    Whoever tokenises it adds EOS, and BOS by `Tokenizer.encode(first, bos=tokenizer.add_bos)`, which leaves the BOS
    that a chat template writes as the only one.

    Args:
      example: from any source.
      tokenizer: its chat template is used by "chat".
      template: one of `TEMPLATES`. "alpaca": the prompt of Stanford Alpaca, with the answer directly after
        `### Response:` as in the paper's code; a conversation fits it if it is one question and one answer. "chat":
        the tokenizer's chat template; targets are the assistant's turns and the token that ends each. Where the
        generation prompt opens a thought (`<think>`) that finished turns lack, the answer ends that thought first.
      system: a system turn for the chat template, where the example has none: it takes the place of a default that
        the template may have.

    Raises:
      InputError: the template is unknown, or the example does not fit it; the sentence names its file and line.
    """
    return _template(template).segments(example, tokenizer, system)


def render_prompt(
    prompt: str, tokenizer: Tokenizer, template: str, *, system: str | None = None, input: str = ""
) -> str:
    """The text that precedes the answer to `prompt`, as training has it: tokenise it with `bos=tokenizer.add_bos`.

    Raises:
      InputError: as `segments`.
    """
    return render_example_prompt(Example(Instruction(prompt, input, ""), "the prompt"), tokenizer, template, system)


def render_example_prompt(example: Example, tokenizer: Tokenizer, template: str, system: str | None = None) -> str:
    """The text that precedes the example's (last) answer; see `render_prompt`."""
    return _template(template).prompt(example, tokenizer, system)


class Template(NamedTuple):
    """What a template does with an example: all of it in pieces, and the text before its last answer."""

    segments: Callable[[Example, Tokenizer, str | None], Segments]
    prompt: Callable[[Example, Tokenizer, str | None], str]


def _template(name: str) -> Template:
    if name not in TEMPLATES:
        raise InputError(f"the template {name!r} is unknown; there are {', '.join(TEMPLATES)}")
    return TEMPLATES[name]


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
    """Returns the answer to a generation prompt that opens a thought, as DeepSeek-R1's does, where turns have none.

    The model is trained from the prompt that it is given later: the answer first ends the thought, which is empty
    where the record has none.
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
    # A template that keeps the thought of a finished turn has it once all the same.
    turn = turn.rpartition("</think>")[2].lstrip("\n")
    return (whole.removeprefix(opened[0]) if whole.startswith(opened[0]) else whole.removeprefix("<think>\n")) + turn


def _rendered(example: Example, tokenizer: Tokenizer, messages: list[Message], prompts: bool) -> str:
    """Returns the chat so far, with the BOS that the template writes; `Tokenizer.encode` does not double it."""
    said = [{"role": message["role"], "content": message["content"]} for message in messages]
    try:
        return tokenizer.render_chat(said, add_generation_prompt=prompts)
    except InputError as error:
        raise InputError(f"{example.where}: {error}") from error


def _through_end(turn: str, content: str, ends: list[str]) -> str:
    """An assistant's turn as rendered, cut after the token that ends it where the template writes one."""
    start = max(turn.find(content.strip()), 0) + len(content.strip())
    found = [(turn.index(end, start), end) for end in ends if end in turn[start:]]
    if not found:
        return turn
    position, end = min(found)
    return turn[: position + len(end)]


TEMPLATES: dict[str, Template] = {"alpaca": Template(_alpaca, _alpaca_prompt), "chat": Template(_chat, _chat_prompt)}
