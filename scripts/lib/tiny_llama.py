"""A random Llama of 4 layers with its own tokenizer, as a Hugging Face folder; for tests and torture_resume."""

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers


def write_tiny_llama(folder: Path) -> None:
    """Writes the model into the folder, which is made; the bytes are always the same."""
    folder.mkdir(parents=True)
    vocab, d, f, n, k, h, num_layers = _tokenizer(folder), 32, 48, 4, 2, 8, 4
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": d,
        "intermediate_size": f, "num_hidden_layers": num_layers, "num_attention_heads": n, "num_key_value_heads": k,
        "head_dim": h, "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    projections = {
        "self_attn.q_proj": (n * h, d), "self_attn.k_proj": (k * h, d), "self_attn.v_proj": (k * h, d),
        "self_attn.o_proj": (d, n * h), "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
    }  # fmt: skip
    random = np.random.default_rng(0)
    weights = {"model.embed_tokens.weight": random.normal(size=(vocab, d)), "model.norm.weight": np.ones(d)}
    for layer in range(num_layers):
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = np.ones(d)
        for name, shape in projections.items():
            weights[f"model.layers.{layer}.{name}.weight"] = random.normal(size=shape) / np.sqrt(shape[1])
    save_file({name: x.astype(np.float32) for name, x in weights.items()}, folder / "model.safetensors")


def _tokenizer(folder: Path) -> int:
    """Writes a byte-level BPE of the quickstart's data with a small chat template; returns its vocabulary size."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = (files("aligner_jax.data.quickstart") / "train.jsonl").read_text(encoding="utf-8")
    tokenizer.train_from_iterator(text.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    turn = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    template = (
        "{% for m in messages %}" + turn + "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return tokenizer.get_vocab_size()
