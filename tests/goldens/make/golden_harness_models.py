"""The tiny models, chats and requests that golden_harness.py gives lm-eval's `hf`, and tests give this project's class.

Needs numpy, safetensors and sentencepiece, and nothing of this project. The models are random. Their heads favour
spaces, line breaks and special tokens, so that stop texts occur within short answers.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import sentencepiece
from safetensors.numpy import save_file

GOLDENS = Path(__file__).resolve().parents[1] / "harness"
BPE_SIZE, SENTENCEPIECE_SIZE, CONTEXT = 400, 402, 96

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_TURNS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "begins": "{{ bos_token }}" + CHATML,
    "no_system": "{{ bos_token }}" + _TURNS,
    "no_system_first": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + CHATML,
    "system_in_user": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set head = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}"
    "{% set head = '' %}{% endif %}{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% set c = (head if loop.index0 == 0 else '') "
    "+ m['content'] %}{% if m['role'] == 'user' %}{{ '[INST] ' + c | trim + ' [/INST]' }}{% else %}"
    "{{ ' ' + c | trim + ' ' + eos_token }}{% endif %}{% endfor %}",
    "hides_thoughts": CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"),
    "upper": CHATML.replace("m['content']", "m['content'] | upper"),
}
# The vocabulary of each folder, and its tokenizer_config.json without the template.
FOLDERS = {
    "bpe": ("bpe", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    "bpe_adds_bos": ("bpe_adds_bos", {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}),
    "bpe_without_bos": ("bpe", {"eos_token": "<|im_end|>"}),
    "sentencepiece": (
        "sentencepiece",
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "legacy": True},
    ),
    "sentencepiece_adds_none": (
        "sentencepiece",
        {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "legacy": True},
    ),
}
_USER = {"role": "user", "content": "Is ice cold? "}
_SYSTEM = {"role": "system", "content": "Be brief."}
_SHOTS = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "one"}]
PREFILLS = [
    "The best answer is", "Answer: ", "```python\n", "\n```python\n", "  two", "end", "im_end", "<|im_end|>", "user",
    "assistant\n", " \n", "a</think>b", "TAG", "x\u3000", "",
]  # fmt: skip
CHATS = [
    [_USER], [_SYSTEM, _USER], [*_SHOTS, _USER], [_SYSTEM, *_SHOTS, _USER], [_USER, _USER], [_SYSTEM],
    *[[_USER, {"role": "assistant", "content": prefill}] for prefill in PREFILLS],
    *[[_SYSTEM, *_SHOTS, _USER, {"role": "assistant", "content": prefill}] for prefill in PREFILLS[:4]],
]  # fmt: skip
TEXTS = [
    "Ice floats", " Ice floats", "Ice floats ", "Ice\n\nfloats\n", "", " ", "\n", "  two", "é", "<|im_start|>Ice",
    "<s>Ice", "</s>Ice", "<|im_end|> Ice", " <|im_start|>Ice",
]  # fmt: skip
PAIRS = [
    ("Ice floats", " on water"), ("Ice floats ", "on water"), ("Ice floats", "on water"), ("Ice  \n", "on water"),
    ("Ice floats\n\n", "\n on"), ("", "Ice floats"), ("", " Ice"), ("", "<s>Ice"), ("", "<|im_start|>Ice"),
    ("A:", " B"),
    ("<|im_start|>user\nIce<|im_end|>\n", "Yes"), ("<s>[INST] Ice [/INST]", " Yes"), ("cold " * 120, "ice"),
    ("Ice", "\n"), ("Ice", " "),
]  # fmt: skip
ROLLING = ["Ice floats on water.", " Ice", "", "cold " * 150, "<s>Ice", "<|im_start|>Ice"]
CONTEXTS = ["Ice floats", "Once upon a time ", "The answer is:", "<|im_start|>user\nIce?<|im_end|>\n", "A\n\nB:"]
KINDS_OF_END = [
    {"until": [], "max_gen_toks": 24},
    {"until": [" "], "max_gen_toks": 24},
    {"until": " ", "max_gen_toks": 24},
    {"until": ["\n"], "max_gen_toks": 24},
    {"until": ["\n\n", " a", "e"], "max_gen_toks": 24},
    {"until": ["e", "the"], "max_gen_toks": 24},
    {"until": [""], "max_gen_toks": 24},
    {"until": ["", " "], "max_gen_toks": 24},
    {"until": ["<|im_start|>"], "max_gen_toks": 24},
    {"until": ["<|other|>", "<unk>"], "max_gen_toks": 24},
    {"until": ["<s>"], "max_gen_toks": 24},
    {"until": ["<|im_end|>", "</s>"], "max_gen_toks": 24},
    {"until": [" the", "  "], "max_new_tokens": 24, "do_sample": False, "temperature": 0.7},
    {"until": [], "max_gen_toks": 1},
    {"until": [], "max_gen_toks": CONTEXT - 1},
    {"until": [], "max_gen_toks": CONTEXT},
    {"until": [], "max_tokens": "7"},
    {"max_gen_toks": 5},
]
RECORDS = [
    {"q": "Is ice cold?", "shots": "", "a": "Yes"},
    {"q": "Is fire cold? ", "shots": "", "a": "No"},
    {"q": "Two words", "shots": "", "a": " of\nmine"},
]
# Fields of each task's file, and arguments of simple_evaluate.
TASKS = {
    "prefilled": ({"gen_prefix": "The answer is: "}, {"apply_chat_template": True}),
    "prefilled_code": ({"gen_prefix": "```python\n"}, {"apply_chat_template": True, "num_fewshot": 2}),
    "prefilled_text": ({"gen_prefix": "So:"}, {"apply_chat_template": False, "num_fewshot": 1}),
    "system": ({"description": "Say it. "}, {"apply_chat_template": True, "system_instruction": "Be brief."}),
    "turns": ({}, {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": True}),
    "one_turn": ({}, {"apply_chat_template": True, "num_fewshot": 2, "fewshot_as_multiturn": False}),
    "plain": ({"target_delimiter": ""}, {"apply_chat_template": False, "num_fewshot": 2}),
}
WHOLE = [
    (folder, template)
    for folder in ("bpe", "sentencepiece")
    for template in ("chatml", "trims", "no_system", "no_system_first")
]
"""Folders and templates of the whole tasks."""


def write_folder(folder: Path, name: str, template: str = "chatml") -> Path:
    """Writes the model of `FOLDERS` with a template of `TEMPLATES`; the tokenizers come from tests/goldens/harness."""
    vocabulary, settings = FOLDERS[name]
    folder.mkdir(parents=True, exist_ok=True)
    is_sentencepiece = vocabulary == "sentencepiece"
    file = "tokenizer.model" if is_sentencepiece else "tokenizer.json"
    shutil.copy(GOLDENS / (file if is_sentencepiece else f"{vocabulary}.json"), folder / file)
    kind = "LlamaTokenizer" if is_sentencepiece else "PreTrainedTokenizerFast"
    settings = {"tokenizer_class": kind, **settings, "chat_template": TEMPLATES[template]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    eos = 2 if is_sentencepiece else 1
    vocab, d, f, n, k, h, num_layers = SENTENCEPIECE_SIZE if is_sentencepiece else BPE_SIZE, 32, 48, 4, 2, 8, 2
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": d,
        "intermediate_size": f, "num_hidden_layers": num_layers, "num_attention_heads": n, "num_key_value_heads": k,
        "head_dim": h, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "hidden_act": "silu", "bos_token_id": None, "eos_token_id": eos,
        "pad_token_id": None,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    random = np.random.default_rng(7)
    shapes = {
        "self_attn.q_proj": (n * h, d), "self_attn.k_proj": (k * h, d), "self_attn.v_proj": (k * h, d),
        "self_attn.o_proj": (d, n * h), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    head = random.normal(size=(vocab, d))
    # A longer row of the head makes its token the likeliest more often.
    head[:3] *= 2
    head[_often(folder / file)] *= 2
    if is_sentencepiece:
        # All bytes but the line break: the two decoders differ for invalid UTF-8.
        head[[3 + byte for byte in range(256) if byte != ord("\n")]] = 0
    weights = {"model.embed_tokens.weight": random.normal(size=(vocab, d)), "lm_head.weight": head}
    weights["model.norm.weight"] = np.ones(d)
    for layer in range(num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{norm}.weight"] = np.ones(d)
        for projection, shape in shapes.items():
            weights[f"model.layers.{layer}.{projection}.weight"] = random.normal(size=shape) / np.sqrt(shape[1])
    save_file({key: x.astype(np.float32) for key, x in weights.items()}, folder / "model.safetensors")
    return folder


def _often(file: Path) -> list[int]:
    """Returns the ids of line breaks and of words that begin with a space."""
    if file.suffix == ".model":
        model = sentencepiece.SentencePieceProcessor(model_file=str(file))
        return [3 + ord("\n"), *(i for i in range(259, len(model)) if model.IdToPiece(i).startswith("▁"))][:30]
    vocabulary = json.loads(file.read_text())["model"]["vocab"]
    return [i for token, i in vocabulary.items() if token.startswith(("Ġ", "Ċ"))][:30]


def write_task(folder: Path, name: str) -> Path:
    """Writes one of `TASKS` with its data; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "records.jsonl"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    fields, _ = TASKS[name]
    task = {
        "task": name, "dataset_path": "json", "test_split": "test", "fewshot_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "arrow")},
        "output_type": "generate_until", "doc_to_text": "Q: {{q}}", "doc_to_target": "{{a}}", "num_fewshot": 0,
        "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "fewshot_config": {"sampler": "first_n"}, **fields,
    }  # fmt: skip
    (folder / f"{name}.yaml").write_text(json.dumps(task))
    return folder
