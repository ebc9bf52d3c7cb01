import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from aligner_jax.data.documents import make_document
from aligner_jax.data.sources import Conversation, Example, Instruction
from aligner_jax.data.templates import render_example_prompt, render_prompt, segments
from aligner_jax.data.tokenizer import make_tokenizer
from aligner_jax.data.tokenizer_hf import HFBackend
from aligner_jax.errors import InputError

CHATML = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] | trim + eos_token }}{% else %}{{ raise_exception('only user and assistant') }}"
    "{% endif %}{% endfor %}"
)
# Like Qwen3 and others: earlier turns lose a part once more turns follow.
FORGETFUL = (
    "{% for m in messages %}{{ m['role'] }}:{% if m['role'] == 'assistant' and not loop.last %}"
    "{{ m['content'].split('|')[-1] }}{% else %}{{ m['content'] }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer(template=None, add_bos=False):
    """Returns a tokenizer with a token per byte, for readable ids; 0 to 3 are <s>, </s>, <|im_start|>, <|im_end|>."""
    specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    return make_tokenizer(
        HFBackend(tokenizer), bos_id=0, eos_id=1, pad_id=None, add_bos=add_bos, chat_template=template
    )


def chat(*contents, first="user"):
    """Returns alternating turns of user and assistant."""
    roles = ["user", "assistant"] if first == "user" else ["system", "user", "assistant"]
    turns = [
        {"role": roles[min(i, 2)] if len(roles) == 3 else roles[i % 2], "content": c} for i, c in enumerate(contents)
    ]
    return Example(Conversation(tuple(turns)), "data.jsonl:7")


OAK = Example(Instruction("Name another.", "not pine", "Oak"), "data.json:3")
PINE = Example(Instruction("Name a tree with {braces}.", "", "Pine"), "data.json:2")


def test_alpaca_is_stanfords_prompt_with_the_answer_right_behind():
    pieces = segments(OAK, byte_tokenizer(), "alpaca")
    assert pieces == [
        (
            "Below is an instruction that describes a task, paired with an input that provides further context. Write "
            "a response that appropriately completes the request.\n\n### Instruction:\nName another.\n\n### Input:\n"
            "not pine\n\n### Response:",
            False,
        ),
        ("Oak", True),
    ]
    assert segments(PINE, byte_tokenizer(), "alpaca") == [
        (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            "\n\n### Instruction:\nName a tree with {braces}.\n\n### Response:",
            False,
        ),
        ("Pine", True),
    ]


def test_alpaca_of_a_conversation():
    as_chat = chat("Name a tree with {braces}.", "Pine")
    assert segments(as_chat, byte_tokenizer(), "alpaca") == segments(PINE, byte_tokenizer(), "alpaca")
    with pytest.raises(InputError, match=r"data\.jsonl:7: .* not user, assistant, user, assistant"):
        segments(chat("a", "b", "c", "d"), byte_tokenizer(), "alpaca")


def test_without_a_template_the_answer_is_right_behind_the_question():
    assert segments(PINE, byte_tokenizer(), "none") == [("Name a tree with {braces}.", False), ("Pine", True)]
    assert render_example_prompt(OAK, byte_tokenizer(), "none") == OAK.question


def test_in_a_chat_the_assistants_turns_and_their_end_tokens_are_targets():
    assert segments(chat("Hi", "Hello", "Bye", "So long"), byte_tokenizer(CHATML), "chat") == [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("Hello<|im_end|>", True),
        ("\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n", False),
        ("So long<|im_end|>", True),
    ]


def test_an_instruction_in_a_chat():
    pieces = segments(OAK, byte_tokenizer(CHATML), "chat", system="")
    assert pieces == [
        (
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nName another.\n\nnot pine<|im_end|>\n"
            "<|im_start|>assistant\n",
            False,
        ),
        ("Oak<|im_end|>", True),
    ]


def test_an_examples_own_system_turn_stays():
    example = chat("Rhyme.", "Hi", "Pie", first="system")
    pieces = segments(example, byte_tokenizer(CHATML), "chat", system="Be long.")
    assert pieces[0][0].startswith("<|im_start|>system\nRhyme.<|im_end|>\n<|im_start|>user")


@pytest.mark.parametrize("add_bos", [True, False])
def test_the_bos_that_a_template_writes_is_the_only_one(add_bos):
    tokenizer = byte_tokenizer(LLAMA2, add_bos)
    example = chat("Hi", " Hello ")
    assert segments(example, tokenizer, "chat") == [("<s>[INST] Hi [/INST]", False), (" Hello</s>", True)]
    document = make_document(example, tokenizer, "chat")
    assert document["tokens"].tolist() == tokenizer.encode("<s>[INST] Hi [/INST] Hello</s>")
    assert document["tokens"].tolist().count(tokenizer.bos_id) == 1
    prompt = render_example_prompt(example, tokenizer, "chat")
    assert tokenizer.encode(prompt, bos=add_bos) == tokenizer.encode("<s>[INST] Hi [/INST]")


@pytest.mark.parametrize(("text", "count"), [("Hi", 1), ("<s>Hi", 1), ("", 1), ("<s><s>Hi", 2), ("Hi<s>", 2)])
def test_bos_is_added_where_a_text_does_not_begin_with_it(text, count):
    ids = byte_tokenizer(add_bos=True).encode(text, bos=True)
    assert ids[0] == 0
    assert ids.count(0) == count


# Like DeepSeek-R1: the generation prompt opens a thought, which finished turns do not keep.
THINKING = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ 'U:' + m['content'] }}{% else %}"
    "{{ 'A:' + m['content'].split('</think>')[-1] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'A:<think>\n' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        ("4", "\n</think>\n\n4</s>"),
        ("<think>\neasy\n</think>\n\n4", "easy\n</think>\n\n4</s>"),
        ("easy</think>4", "easy\n</think>\n\n4</s>"),
        ("", "\n</think>\n\n</s>"),
    ],
)
@pytest.mark.parametrize("end", ["<think>\n", "<think>"])
def test_the_answer_to_a_prompt_that_opens_a_thought_ends_it_first(content, answer, end):
    tokenizer = byte_tokenizer(THINKING.replace("<think>\n'", f"{end}'"))
    pieces = segments(chat("2+2?", content), tokenizer, "chat")
    assert pieces == [("<s>U:2+2?A:" + end, False), ("\n" * (end == "<think>") + answer, True)]
    assert render_example_prompt(chat("2+2?", content), tokenizer, "chat") == pieces[0][0]


@pytest.mark.parametrize("content", ["", "\n\nHello", "a<|im_end|>b", "Hi"])
def test_odd_answers_lose_nothing(content):
    text, is_target = segments(chat("Hi", content), byte_tokenizer(CHATML), "chat")[-1]
    assert (text, is_target) == (content + "<|im_end|>", True)


@pytest.mark.parametrize(("template", "chat_template"), [("alpaca", None), ("chat", CHATML), ("chat", LLAMA2)])
@pytest.mark.parametrize("example", [OAK, PINE, chat("Hi", "Hello")])
def test_generation_sees_the_prompt_that_training_had(template, chat_template, example):
    tokenizer = byte_tokenizer(chat_template, add_bos=True)
    pieces = segments(example, tokenizer, template)
    assert render_example_prompt(example, tokenizer, template) == pieces[0][0]
    if isinstance(example.record, Instruction):
        record = example.record
        assert render_prompt(record.instruction, tokenizer, template, input=record.input) == pieces[0][0]


def test_the_prompt_of_a_long_conversation_ends_at_its_last_answer():
    tokenizer = byte_tokenizer(CHATML)
    example = chat("Hi", "Hello", "Bye", "So long")
    prompt = render_example_prompt(example, tokenizer, "chat", system="S")
    assert prompt == "".join(text for text, _ in segments(example, tokenizer, "chat", system="S")[:-1])


@pytest.mark.parametrize(
    ("example", "template", "chat_template", "system", "message"),
    [
        (PINE, "alpacca", None, None, "'alpacca' is unknown; there are alpaca, chat"),
        (PINE, "chat", None, None, r"data\.json:2: the tokenizer has no chat template"),
        (PINE, "none", None, "Be long.", "'none' has no place for a system prompt"),
        (chat("a", "b", "c", "d"), "none", None, None, "'none' takes one user and one assistant turn, not user, assi"),
        (PINE, "alpaca", None, "Be long.", "'alpaca' has no place for a system prompt"),
        (PINE, "chat", LLAMA2, "Be long.", r"data\.json:2: .* only user and assistant"),
        (
            chat("a", "x|b", "c", "d"),
            "chat",
            FORGETFUL,
            None,
            r"data\.jsonl:7: the chat template writes the messages before message 4 differently",
        ),
        (
            chat("a", "b", "c", "d"),
            "chat",
            THINKING,
            None,
            r"7: .* opens a thought, of which earlier answers keep nothing",
        ),
        (
            PINE,
            "chat",
            THINKING.replace("<think>", "|"),
            None,
            r"data\.json:2: the chat template's generation prompt ends in .*A:\|.* is not how it begins message 2",
        ),
    ],
)
def test_what_does_not_fit_is_refused(example, template, chat_template, system, message):
    with pytest.raises(InputError, match=message):
        segments(example, byte_tokenizer(chat_template), template, system)


def test_an_answer_that_is_not_learned_is_no_target():
    first, second, third, last = chat("Hi", "Hello", "And?", "Bye").messages()
    record = Conversation((first, {**second, "learned": False}, third, last))
    pieces = segments(Example(record, "data.jsonl:7"), byte_tokenizer(CHATML), "chat")
    whole = segments(chat("Hi", "Hello", "And?", "Bye"), byte_tokenizer(CHATML), "chat")
    assert [text for text, _ in pieces] == [text for text, _ in whole]
    assert [is_target for _, is_target in whole] == [False, True, False, True]
    assert [is_target for _, is_target in pieces] == [False, False, False, True]
