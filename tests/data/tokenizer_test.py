import json

import numpy as np
import places
import pytest
import sentencepiece
import tokenizers
from small_tokenizers import train_byte_level, train_sentencepiece, write_bpe_gguf, write_gguf, write_sentencepiece_gguf
from tokenizers import models, normalizers, pre_tokenizers, processors

from aligner_jax.data.gguf_metadata import read_gguf_header
from aligner_jax.data.tokenizer_files import load_tokenizer
from aligner_jax.data.tokenizer_sentencepiece import new_model
from aligner_jax.errors import InputError

SHARED = places.SHARED / "data"

TEXTS = [
    "The capital of France is Paris.",
    "a  b\n\n  c\t12345 isn't 6,789",
    "emoji 😀 and € and 漢字 𝄞",
    "  leading and trailing  ",
    "\n",
    "",
]
CHAT = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def byte_level():
    return train_byte_level()


@pytest.fixture(scope="module")
def sentencepiece_bytes():
    """Returns a LLaMA-style SentencePiece model: BPE, byte fallback, dummy prefix, single digits."""
    return train_sentencepiece(remove_extra_whitespaces=False)


@pytest.fixture(scope="module")
def files(tmp_path_factory, byte_level, sentencepiece_bytes):
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "tokenizer.model.v1").write_bytes(sentencepiece_bytes)
    byte_level.save(str(folder / "tokenizer.json"))
    (folder / "collapsing.model").write_bytes(train_sentencepiece(remove_extra_whitespaces=True))
    return {
        "collapsing": folder / "collapsing.model",
        "bpe_gguf": write_bpe_gguf(folder / "bpe.gguf", byte_level, add_bos_token=False, chat_template=CHAT),
        "sentencepiece_gguf": write_sentencepiece_gguf(folder / "sp.gguf", sentencepiece_bytes),
        "sentencepiece": folder / "tokenizer.model.v1",
        "json": folder / "tokenizer.json",
    }


KINDS = ["bpe_gguf", "sentencepiece_gguf", "sentencepiece", "json"]


def load(path):
    tokenizer = load_tokenizer(path)
    assert tokenizer is not None
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", TEXTS)
def test_decoding_inverts_encoding_at_once_and_in_a_stream(files, kind, text):
    tokenizer = load(files[kind])
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    pieces = [*map(tokenizer.stream_decoder(), ids)]
    assert "".join(pieces) == text
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@pytest.mark.parametrize("kind", [*KINDS, "collapsing"])
def test_a_long_stream_is_decoded_as_the_whole(files, kind):
    tokenizer = load(files[kind])
    ids = np.random.default_rng(0).integers(0, tokenizer.vocab_size, 2000)
    ids[::3] = tokenizer.backend.token_id("▁") or tokenizer.backend.token_id("Ġ")
    ids = ids.tolist()
    step = tokenizer.stream_decoder()
    streamed = "".join(step(i) for i in ids)
    whole = tokenizer.decode(ids)
    assert whole.startswith(streamed)
    assert whole[len(streamed) :].strip("\N{REPLACEMENT CHARACTER}") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_are_parsed_in_texts_and_left_out_of_them(files, kind):
    tokenizer = load(files[kind])
    end = "</s>" if "sentencepiece" in kind else "<|im_end|>"
    ids = tokenizer.encode(f"Blue{end}The")
    assert ids.count(2) == 1
    assert end not in tokenizer.decode(ids)
    assert tokenizer.decode([2, *ids, tokenizer.vocab_size + 5]) == tokenizer.decode(ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("first", "second"), [("### Response:", "Blue"), ("The", " capital"), ("a\n", "{}")])
def test_a_continuation_gets_no_space(files, kind, first, second):
    tokenizer = load(files[kind])
    ids = tokenizer.encode(first)
    assert tokenizer.decode(ids + tokenizer.encode(second, after=ids[-1])) == first + second


@pytest.mark.parametrize("text", [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"])
def test_bpe_of_a_gguf_is_that_of_the_tokenizer_it_came_from(files, byte_level, text):
    assert load(files["bpe_gguf"]).encode(text) == byte_level.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("text", TEXTS)
def test_sentencepiece_of_a_gguf_is_that_of_the_model_it_came_from(files, sentencepiece_bytes, text):
    model = sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_bytes)
    assert load(files["sentencepiece_gguf"]).encode(text) == model.EncodeAsIds(text)
    assert load(files["sentencepiece"]).encode(text) == model.EncodeAsIds(text)


def test_pieces_before_the_merges_differ_by_name(tmp_path, byte_level):
    """LLaMA 3 merges up to three digits, Qwen none, GPT-2 any; Tekken splits at capitals. All share a vocabulary."""
    merged = json.loads(byte_level.to_str())
    for text in ("12", "123", "1234", "xY", "xYz"):
        merged["model"]["vocab"][text] = len(merged["model"]["vocab"])
        merged["model"]["merges"].append([text[:-1], text[-1]])
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(merged))
    texts = {}
    for pre in ("smollm", "llama-bpe", "gpt-2", "default", "qwen2", "deepseek-r1-qwen", "tekken"):
        loaded = load(write_bpe_gguf(tmp_path / f"{pre}.gguf", tokenizer, pre=pre))
        texts[pre] = [loaded.decode([i]) for i in loaded.encode("1234xYz")]
    assert texts == {
        "smollm": ["1", "2", "3", "4", "xYz"],
        "llama-bpe": ["123", "4", "xYz"],
        "gpt-2": ["1234", "xYz"],
        "default": ["123", "4", "xYz"],
        "qwen2": ["1", "2", "3", "4", "xYz"],
        "deepseek-r1-qwen": ["1", "2", "3", "4", "xYz"],
        "tekken": ["1", "2", "3", "4", "x", "Y", "z"],
    }


def test_bos_and_eos(files):
    tokenizer = load(files["sentencepiece"])
    plain = tokenizer.encode("Blue")
    assert tokenizer.encode("Blue", bos=True, eos=True) == [1, *plain, 2]
    with pytest.raises(InputError, match="no BOS token"):
        load(files["json"]).encode("Blue", bos=True)


def test_a_gguf_says_whether_it_wants_bos(tmp_path, files, byte_level):
    assert not load(files["bpe_gguf"]).add_bos
    assert load(files["sentencepiece_gguf"]).add_bos
    wanted = {"llama-bpe": True, "llama3": True, "tekken": True, "qwen2": False}
    for pre, add_bos in wanted.items():
        assert load(write_bpe_gguf(tmp_path / f"{pre}.gguf", byte_level, pre=pre)).add_bos is add_bos


def test_end_tokens_of_chat_stop_generation(files):
    assert load(files["bpe_gguf"]).stop_ids == {0, 2}
    assert load(files["sentencepiece"]).stop_ids == {2}
    assert load(files["bpe_gguf"]).pad_id == 2


def test_equal_files_make_unequal_hashable_tokenizers(files):
    first, second = load(files["json"]), load(files["json"])
    assert first != second
    assert len({first, second, first}) == 2


def test_a_folder_is_read_with_its_settings(tmp_path, byte_level, sentencepiece_bytes):
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    assert load(tmp_path).vocab_size == 400
    byte_level.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": {"content": "<|im_start|>"}, "eos_token": "<|im_end|>", "chat_template": CHAT}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load(tmp_path)
    assert (tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (390, 1, 2, False)
    assert tokenizer.chat_template == CHAT
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 17]}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "add_bos_token": True}))
    (tmp_path / "chat_template.jinja").write_text("{{ bos_token }}")
    tokenizer = load(tmp_path)
    assert tokenizer.stop_ids == {0, 2, 17}
    assert tokenizer.add_bos
    assert tokenizer.render_chat([]) == "<|im_start|>"


def test_a_null_bos_is_none_whatever_the_config_numbers(tmp_path, byte_level):
    """Qwen 2.5 has a null BOS. The harness then scores a text without context after EOS, as its hf backend does."""
    byte_level.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 0, "eos_token_id": 2}))
    for settings, bos_id in (({}, 0), ({"bos_token": None}, None), ({"bos_token": "<|im_start|>"}, 1)):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
        assert load(tmp_path).bos_id == bos_id


def test_tokens_a_folder_adds_to_a_sentencepiece_model(tmp_path, sentencepiece_bytes):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_bytes)
    added = {"400": {"content": "<|im_end|>", "special": True}, "401": {"content": "[TOOL]", "special": False}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": added}))
    tokenizer = load(tmp_path)
    # A legacy SentencePiece vocabulary adds a space after every marker, special or not, as transformers does.
    ids = tokenizer.encode("Blue[TOOL]year<|im_end|>")
    assert (ids[-1], ids.count(401), tokenizer.vocab_size) == (400, 1, 402)
    assert tokenizer.decode(ids) == "Blue[TOOL] year"
    assert 400 in tokenizer.stop_ids


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "after_special"),
    [
        (normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]), None, True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="first"), False),
        (None, pre_tokenizers.Metaspace(prepend_scheme="always"), True),
        (None, pre_tokenizers.Metaspace(prepend_scheme="never"), False),
    ],
)
def test_the_ways_tokenizer_json_adds_a_space(tmp_path, normalizer, pre_tokenizer, after_special):
    """LLaMA has published both forms; the legacy one also adds a space after a special token."""
    vocab = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", "a", "b", "▁a", "▁b"])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "a"), ("▁", "b")], unk_token="<unk>"))
    tokenizer.add_special_tokens([tokenizers.AddedToken(t, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    if normalizer:
        tokenizer.normalizer = normalizer
    if pre_tokenizer:
        tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load(tmp_path)
    assert (loaded.bos_id, loaded.add_bos) == (1, True)
    joint = tokenizer.encode("a</s>b", add_special_tokens=False).ids
    assert joint[-1] == vocab["▁b" if after_special else "b"]
    assert loaded.encode("b", after=vocab["a"]) == [vocab["b"]]
    assert loaded.encode("b", after=vocab["</s>"]) == joint[-1:]
    assert loaded.encode("a</s>b") == joint


def test_chats_are_rendered_with_the_models_template(files):
    tokenizer = load(files["bpe_gguf"])
    messages = [{"role": "user", "content": "<hi> & 'you'"}]
    assert tokenizer.render_chat(messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n<hi> & 'you'<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses the conversation: roles must alternate"),
        ("a\n{% if %}", "malformed at its line 2"),
        ("{{ messages[0]['content'] + 'x' }}", "refuses the conversation"),
        ("{{ ''.__class__.__mro__ }}", "refuses the conversation"),
    ],
)
def test_a_template_that_cannot_be_rendered(tmp_path, byte_level, template, message):
    tokenizer = load(write_bpe_gguf(tmp_path / "t.gguf", byte_level, chat_template=template))
    with pytest.raises(InputError, match=message):
        tokenizer.render_chat([{"role": "user", "content": None}])


def test_templates_have_what_hugging_face_gives_them(tmp_path, byte_level):
    template = (
        "{{ bos_token }}{{ eos_token }}{{ messages[0] | tojson }}{% for m in messages %}{% generation %}"
        "{{ m['content'] }}{% endgeneration %}{% break %}{% endfor %}{{ strftime_now('%d %b %Y') }}"
    )
    tokenizer = load(write_bpe_gguf(tmp_path / "t.gguf", byte_level, chat_template=template))
    assert tokenizer.render_chat([{"content": "é<"}]) == '<|im_start|><|im_end|>{"content": "é<"}é<26 Jul 2024'


def test_no_chat_template(files):
    with pytest.raises(InputError, match="no chat template"):
        load(files["json"]).render_chat([])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.99])
def test_files_cut_off_are_refused_by_name(tmp_path, files, kind, share):
    whole = files[kind].read_bytes()
    path = tmp_path / files[kind].name
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=path.name):
        load_tokenizer(path)


def test_a_sentencepiece_model_cut_off_between_two_pieces(tmp_path, sentencepiece_bytes):
    """The rest is a valid message of its format: only the settings at its end are missing."""
    end = sentencepiece_bytes.index(b"\x0a", 200)
    while True:
        path = tmp_path / "tokenizer.model"
        path.write_bytes(sentencepiece_bytes[:end])
        with pytest.raises(InputError, match=r"tokenizer\.model is not a"):
            load_tokenizer(path)
        end = sentencepiece_bytes.find(b"\x0a", end + 1)
        if not 0 < end < 600:
            break


def test_a_sentencepiece_model_with_a_piece_twice(tmp_path, sentencepiece_bytes):
    model = new_model.FromString(sentencepiece_bytes)
    model.pieces[-1].piece = model.pieces[-2].piece
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"tokenizer\.model: its vocabulary cannot be used: .* is already defined"):
        load_tokenizer(tmp_path / "tokenizer.model")


def test_bytes_that_are_no_text_are_refused(files):
    for kind in KINDS:
        with pytest.raises(InputError, match="the text holds half a surrogate pair at its character 2"):
            load(files[kind]).encode("a\udcff")


def test_every_cut_within_a_gguf_header_is_named(tmp_path, byte_level):
    path = write_bpe_gguf(tmp_path / "whole.gguf", byte_level)
    whole = path.read_bytes()
    assert read_gguf_header(path).fields["tokenizer.ggml.pre"] == "smollm"
    cut = tmp_path / "cut.gguf"
    last = whole.index(b"tokenizer.ggml.eos_token_id")
    for size in [*range(0, 300), *range(300, last, 997), last + 10]:
        cut.write_bytes(whole[:size])
        with pytest.raises(InputError, match=r"cut\.gguf"):
            read_gguf_header(cut)
    with pytest.raises(InputError, match="metadata field"):
        read_gguf_header(cut)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "bert"}, "tokenizer.ggml.model is 'bert'"),
        ({"pre": "chess"}, "tokenizer.ggml.pre is 'chess'"),
        ({"eos_token_id": 10_000}, "eos_token_id is 10000, but there are 390 tokens"),
        ({"merges": ["q zzz"]}, "merges do not fit"),
        ({"token_type": [1, 1]}, "token_type is not one number for each of the 390"),
        ({"model": "llama", "scores": [0.0] * 390}, r"t\.gguf: its vocabulary cannot be used: .*unk is not defined"),
        (
            {"model": "llama", "scores": [0.0] * 390, "token_type": [1] * 389 + [0]},
            r"t\.gguf: tokenizer.ggml.token_type of '.*' is 0: ",
        ),
    ],
)
def test_a_gguf_vocabulary_that_does_not_fit_together(tmp_path, byte_level, fields, message):
    state = json.loads(byte_level.to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].get)
    merges = [" ".join(state["merges"][0])]
    whole = {"model": "gpt2", "pre": "smollm", "tokens": tokens, "merges": merges, "token_type": [1] * len(tokens)}
    path = write_gguf(tmp_path / "t.gguf", **{**whole, **fields})
    with pytest.raises(InputError, match=message):
        load_tokenizer(path)


def test_paths_that_are_no_tokenizer(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        load_tokenizer(tmp_path / "nothing.gguf")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match=r"notes\.txt is not a tokenizer"):
        load_tokenizer(tmp_path / "notes.txt")
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json:1 is not JSON"):
        load_tokenizer(tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the third-party data folder is not beside the repository")
def test_published_sentencepiece_models():
    mistral = load(SHARED / "tokenizers" / "mistral_v1" / "tokenizer.model.v1")
    assert mistral.encode("Hello world", bos=True) == [1, 22557, 1526]
    assert (mistral.bos_id, mistral.eos_id, mistral.add_bos, mistral.vocab_size) == (1, 2, True, 32_000)
    stories = load(SHARED / "models" / "stories260K" / "hf")
    assert stories.vocab_size == 512
    assert stories.encode("Once upon a time", after=1) == [403, 407, 261, 378]
    assert stories.decode([1, 403, 407, 261, 378]) == "Once upon a time"
