"""Writes tests/goldens/: results of implementations other than this package's on tiny random models.

    python3.11 -m venv ENV
    ENV/bin/pip install torch transformers safetensors numpy tokenizers sentencepiece gguf regex
    ENV/bin/python tests/goldens/make/make_goldens.py [--smollm2 SmolLM2-135M-Instruct.Q4_1.gguf]

The committed files come from Python 3.11.7, torch 2.13.0, transformers 5.23.0 and numpy 2.4.6, and a second run
writes the same bytes. Without --smollm2, SmolLM2's ids are copied from the existing tokenizers.json.
Nothing here imports aligner_jax: an error shared with the code under test would cancel out.

Three independent parties: transformers (float64) for plain models, `Oracle` (float64 torch, written from the
formulas of the Aligner paper, arXiv 2312.05503) for adapters, and a pure-Python BPE (golden_tokenizers.py) for token
ids, checked against the `tokenizers` package. `Oracle` is checked against transformers on every model and, if
`../shared` exists, against the float64 goldens of stories260K there.
"""

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from golden_released import write_lit_llama, write_released
from golden_tokenizers import write_tokenizers
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parents[3]
GOLDENS = ROOT / "tests" / "goldens"
SHARED = ROOT.parent / "shared"


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its sizes, further keys of config.json, and the format of its files."""

    seed: int
    d: int
    f: int
    n: int
    k: int
    h: int
    extra: dict = field(default_factory=dict)
    model_type: str = "llama"
    spelled: bool = True
    style: str = "hub"
    shards: int = 1
    dtype: torch.dtype = torch.float32
    length: int = 24
    layers: int = 3
    vocab: int = 64

    def config(self) -> dict:
        """Returns config.json as in hub folders. `spelled` False omits LLaMA-1's absent keys, to test defaults."""
        names = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"}
        sizes = {
            "architectures": [names[self.model_type]],
            "model_type": self.model_type,
            "hidden_size": self.d,
            "intermediate_size": self.f,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.n,
            "vocab_size": self.vocab,
            "max_position_embeddings": 2048,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
            "torch_dtype": str(self.dtype).removeprefix("torch."),
        }
        heads = {"num_key_value_heads": self.k, "head_dim": self.h} if self.spelled else {}
        return sizes | heads | self.extra


LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
    "rope_type": "llama3",
}

# Some models have an epsilon far above the usual one, so that a loader that ignores the key is caught.
MODELS = {
    "llama": Tiny(1, d=16, f=32, n=2, k=2, h=8, spelled=False, extra={"rms_norm_eps": 1e-2}),
    "llama3": Tiny(
        2, d=32, f=40, n=4, k=2, h=8, length=32,
        extra={
            "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": LLAMA3_SCALING, "tie_word_embeddings": True,
        },
    ),
    "wide_head": Tiny(
        3, d=24, f=32, n=4, k=2, h=8, style="transformers5",
        extra={"rms_norm_eps": 1e-3, "rope_theta": 10000.0, "attention_bias": True},
    ),
    "mistral": Tiny(
        4, d=32, f=24, n=4, k=1, h=8, model_type="mistral", style="transformers5",
        extra={"rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None},
    ),
    "sharded": Tiny(5, d=16, f=32, n=4, k=2, h=4, shards=2, extra={"rms_norm_eps": 1e-6, "rope_scaling": None}),
    "bfloat16": Tiny(
        6, d=16, f=24, n=2, k=1, h=8, dtype=torch.bfloat16,
        extra={"rms_norm_eps": 1e-5, "rope_theta": 100000.0, "tie_word_embeddings": True},
    ),
}  # fmt: skip


def random_weights(tiny: Tiny) -> dict[str, torch.Tensor]:
    """Returns random tensors under HF names, norms and biases too; large q and k keep attention far from flat."""
    rng = np.random.default_rng(tiny.seed)

    def matrix(out: int, into: int, gain: float) -> torch.Tensor:
        return torch.tensor(rng.standard_normal((out, into)) * gain / math.sqrt(into), dtype=tiny.dtype)

    def vector(size: int, mean: float, std: float) -> torch.Tensor:
        return torch.tensor(mean + std * rng.standard_normal(size), dtype=tiny.dtype)

    weights = {"model.embed_tokens.weight": matrix(tiny.vocab, tiny.d, 1.5)}
    projections = {
        "self_attn.q_proj": (tiny.n * tiny.h, tiny.d, 1.6),
        "self_attn.k_proj": (tiny.k * tiny.h, tiny.d, 1.6),
        "self_attn.v_proj": (tiny.k * tiny.h, tiny.d, 1.0),
        "self_attn.o_proj": (tiny.d, tiny.n * tiny.h, 1.0),
        "mlp.gate_proj": (tiny.f, tiny.d, 1.0),
        "mlp.up_proj": (tiny.f, tiny.d, 1.0),
        "mlp.down_proj": (tiny.d, tiny.f, 1.0),
    }
    for layer in range(tiny.layers):
        prefix = f"model.layers.{layer}."
        weights[prefix + "input_layernorm.weight"] = vector(tiny.d, 1.0, 0.3)
        weights[prefix + "post_attention_layernorm.weight"] = vector(tiny.d, 1.0, 0.3)
        for name, (out, into, gain) in projections.items():
            weights[f"{prefix}{name}.weight"] = matrix(out, into, gain)
            if tiny.extra.get("attention_bias") and name.startswith("self_attn"):
                weights[f"{prefix}{name}.bias"] = vector(out, 0.0, 0.4)
    weights["model.norm.weight"] = vector(tiny.d, 1.0, 0.3)
    if not tiny.extra.get("tie_word_embeddings"):
        weights["lm_head.weight"] = matrix(tiny.vocab, tiny.d, 1.5)
    return weights


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_model(name: str, tiny: Tiny) -> Path:
    """Writes the folder's config and safetensors; for "transformers5" transformers writes the config itself."""
    from transformers import LlamaConfig, MistralConfig

    folder = GOLDENS / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    config_class = {"llama": LlamaConfig, "mistral": MistralConfig}[tiny.model_type]
    if tiny.style == "hub":
        write_json(folder / "config.json", tiny.config())
    else:
        config_class(**tiny.config()).save_pretrained(folder)
    if name == "llama3":
        newer = json.loads(config_class(**tiny.config()).to_json_string())
        write_json(folder / "config_transformers5.json", newer)
    weights = random_weights(tiny)
    if tiny.shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = sorted(weights)
    cuts = [len(names) * i // tiny.shards for i in range(tiny.shards + 1)]
    files = [f"model-{i + 1:05d}-of-{tiny.shards:05d}.safetensors" for i in range(tiny.shards)]
    where = {key: files[i] for i in range(tiny.shards) for key in names[cuts[i] : cuts[i + 1]]}
    for file in files:
        save_file({key: weights[key] for key in names if where[key] == file}, folder / file, metadata={"format": "pt"})
    size = sum(tensor.nbytes for tensor in weights.values())
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})
    return folder


class Oracle:
    """A LLaMA with an optional adapter, in float64 throughout, read from an HF folder."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_text())
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        self.n = config["num_attention_heads"]
        self.k = config.get("num_key_value_heads") or self.n
        self.h = config.get("head_dim") or config["hidden_size"] // self.n
        self.layers = config["num_hidden_layers"]
        self.eps = config["rms_norm_eps"]
        self.theta = rope.get("rope_theta") or config.get("rope_theta") or 10000.0
        self.scaling = rope if rope.get("rope_type") == "llama3" else None
        self.w = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.w |= {key: tensor.double() for key, tensor in load_file(file).items()}

    def frequencies(self) -> torch.Tensor:
        """Returns the angle per position of half-split pairs, [h/2]; Llama 3.1 scales piecewise by wavelength."""
        plain = [self.theta ** (-2 * i / self.h) for i in range(self.h // 2)]
        if self.scaling is None:
            return torch.tensor(plain, dtype=torch.float64)
        factor, low, high, context = (self.scaling[key] for key in list(LLAMA3_SCALING)[:4])
        scaled = []
        for frequency in plain:
            turns = context * frequency / (2 * math.pi)
            blend = min(max((turns - low) / (high - low), 0.0), 1.0)
            scaled.append(blend * frequency + (1 - blend) * frequency / factor)
        return torch.tensor(scaled, dtype=torch.float64)

    def rotate(self, x_bthd: torch.Tensor) -> torch.Tensor:
        angles = torch.arange(x_bthd.shape[1], dtype=torch.float64)[:, None] * self.frequencies()
        cos, sin = angles.cos()[None, :, None], angles.sin()[None, :, None]
        first, second = x_bthd.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.w[name + ".weight"]

    def linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)

    def logits(self, ids: torch.Tensor, leaves: dict, start_layer: int = 0) -> torch.Tensor:
        """Returns logits [b, t, vocab]; `leaves` are named as in the golden files, {} is the base model."""
        b, t = ids.shape
        group = self.n // self.k
        future = torch.ones(t, t, dtype=torch.bool).triu(1)
        x = self.w["model.embed_tokens.weight"][ids]
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            y = self.norm(x, at + "input_layernorm")
            q, k, v = (self.linear(y, f"{at}self_attn.{name}_proj") for name in "qkv")
            if "qa" in leaves:
                q = q + 2.0 * (y @ leaves["qa"][layer].T) @ leaves["qb"][layer].T
                v = v + 2.0 * (y @ leaves["va"][layer].T) @ leaves["vb"][layer].T
            q = self.rotate(q.view(b, t, self.n, self.h))
            k = self.rotate(k.view(b, t, self.k, self.h)).repeat_interleave(group, dim=2)
            v = v.view(b, t, self.k, self.h).repeat_interleave(group, dim=2)
            scores = torch.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(self.h)
            out = torch.einsum("bnts,bsnh->btnh", scores.masked_fill(future, -math.inf).softmax(-1), v)
            adapted = layer - start_layer
            if "tokens" in leaves and adapted >= 0:
                tokens = leaves["tokens"] if leaves["tokens"].ndim == 2 else leaves["tokens"][adapted]
                k_a, v_a = (
                    self.linear(tokens, f"{at}self_attn.{name}_proj")
                    .view(-1, self.k, self.h)
                    .repeat_interleave(group, 1)
                    for name in "kv"
                )
                weights = (torch.einsum("btnh,pnh->bntp", q, k_a) / math.sqrt(self.h)).softmax(-1)
                gate = leaves["gates"][adapted][None, None, :, None]
                out = out + gate * torch.einsum("bntp,pnh->btnh", weights, v_a)
            x = x + self.linear(out.reshape(b, t, -1), at + "self_attn.o_proj")
            y = self.norm(x, at + "post_attention_layernorm")
            hidden = torch.nn.functional.silu(self.linear(y, at + "mlp.gate_proj")) * self.linear(y, at + "mlp.up_proj")
            x = x + self.linear(hidden, at + "mlp.down_proj")
        head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])
        return self.norm(x, "model.norm") @ head.T

    def golden(self, kind: str, ids: np.ndarray, mask: np.ndarray, leaves: dict[str, np.ndarray], start: int) -> dict:
        """Returns every key of a golden file: inputs, logits, masked mean next-token loss and its gradient by leaf."""
        tensors = {key: torch.tensor(leaf, dtype=torch.float64, requires_grad=True) for key, leaf in leaves.items()}
        tokens = torch.tensor(ids)
        logits = self.logits(tokens, tensors, start)
        losses = logits[:, :-1].logsumexp(-1) - logits[:, :-1].gather(-1, tokens[:, 1:, None])[..., 0]
        weight = torch.tensor(mask[:, 1:], dtype=torch.float64)
        loss = (losses * weight).sum() / weight.sum()
        grads = dict(zip(tensors, torch.autograd.grad(loss, list(tensors.values())), strict=True))
        with torch.no_grad():
            base = self.logits(tokens, {})
        result = {"ids": ids, "loss_mask": mask, "start_layer": np.int64(start), "kind": np.str_(kind)}
        result |= {"logits": logits.detach().numpy().astype(np.float32), "loss": np.float64(loss.item())}
        result["base_logits"] = base.numpy().astype(np.float32)
        for key, leaf in leaves.items():
            result |= {key: np.asarray(leaf, np.float64), "grad_" + key: grads[key].numpy()}
        return result


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


def check_against_shared() -> None:
    """Checks the oracle against the float64 goldens of stories260K, all three kinds."""
    files = sorted((SHARED / "goldens").glob("stories260k_*.npz"))
    if not files:
        print(f"no goldens in {SHARED}: the oracle is checked against transformers only")
    for file in files:
        known = dict(np.load(file))
        leaves = {
            key.removeprefix("grad_"): known[key.removeprefix("grad_")] for key in known if key.startswith("grad_")
        }
        oracle = Oracle(SHARED / "data/models/stories260K/hf")
        mine = oracle.golden(str(known["kind"]), known["ids"], known["loss_mask"], leaves, int(known["start_layer"]))
        worst = {key: difference(mine[key], known[key]) for key in known if key != "kind"}
        print(f"{file.name}: largest difference {max(worst.values()):.1e}")
        assert max(worst.values()) < 1e-6, f"{file}: the oracle disagrees: {worst}"


def write_models() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    for name, tiny in MODELS.items():
        folder = write_model(name, tiny)
        ids = np.random.default_rng(100 + tiny.seed).integers(0, tiny.vocab, (2, tiny.length))
        configs = [folder / "config.json", *sorted(folder.glob("config_*.json"))]
        for path in configs:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                config=AutoConfig.for_model(**json.loads(path.read_text())),
                dtype=torch.float64,
                attn_implementation="sdpa",
                output_loading_info=True,
            )
            assert not any(report.values()), f"{folder}: {report}"
            with torch.no_grad():
                logits = model.eval()(torch.tensor(ids)).logits.numpy()
            oracle = Oracle(folder)
            gap = difference(logits, oracle.logits(torch.tensor(ids), {}).numpy())
            print(f"{name}/{path.name}: logits std {logits.std():.2f}, oracle − transformers {gap:.1e}")
            # transformers computes norms and rotary angles in float32 even in a float64 model.
            assert gap < 2e-5, f"{folder}: transformers and the oracle disagree by {gap}"
        if oracle.scaling:
            oracle.scaling = None
            assert difference(logits, oracle.logits(torch.tensor(ids), {}).numpy()) > 0.1, "scaling must matter"
        np.savez(folder / "expected.npz", ids=ids, logits=logits.astype(np.float32))


def write_adapters() -> None:
    oracle, tiny = Oracle(GOLDENS / "models" / "llama3"), MODELS["llama3"]
    rng = np.random.default_rng(7)
    ids = rng.integers(0, tiny.vocab, (2, tiny.length))
    # Prompts of different lengths and a hole show a loss that is averaged by row or not shifted.
    mask = np.ones(ids.shape)
    mask[0, :7], mask[1, :19], mask[0, 15:18] = 0, 0, 0
    adapted, rank = tiny.layers - 1, 4

    def prefix(*shape: int) -> dict[str, np.ndarray]:
        return {"tokens": rng.standard_normal((*shape, tiny.d)), "gates": 0.5 * rng.standard_normal((adapted, tiny.n))}

    low_rank = {
        "qa": rng.standard_normal((tiny.layers, rank, tiny.d)) / math.sqrt(tiny.d),
        "qb": rng.standard_normal((tiny.layers, tiny.n * tiny.h, rank)) * 0.2,
        "va": rng.standard_normal((tiny.layers, rank, tiny.d)) / math.sqrt(tiny.d),
        "vb": rng.standard_normal((tiny.layers, tiny.k * tiny.h, rank)) * 0.2,
    }
    cases = [
        ("aligner_p1", "aligner", prefix(1), 1),
        ("aligner_p3", "aligner", prefix(3), 1),
        ("llama_adapter_p4", "llama_adapter", prefix(adapted, 4), 1),
        ("lora_r4", "lora", low_rank, 0),
    ]
    for name, kind, leaves, start in cases:
        golden = oracle.golden(kind, ids, mask, leaves, start)
        np.savez(GOLDENS / f"{name}.npz", **golden)
        sizes = ", ".join(f"{key} {np.abs(golden['grad_' + key]).max():.1e}" for key in leaves)
        print(f"{name}: loss {golden['loss']:.4f}, largest gradients {sizes}")


def write_adamw() -> None:
    """Writes five float32 steps of torch.optim.AdamW; one entry's gradient starts at zero, one is tiny."""
    rng = np.random.default_rng(8)
    start = rng.standard_normal((2, 3)).astype(np.float32)
    grads = (rng.standard_normal((5, 2, 3)) * [1.0, 0.1, 1e-3]).astype(np.float32)
    grads[:2, 0, 0] = 0.0
    grads[:, 1, 2] = [1e-7, 2e-7, -1e-7, 3e-8, 1e-7]
    parameter = torch.nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([parameter], lr=9e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.02, foreach=False)
    after = []
    for grad in grads:
        parameter.grad = torch.tensor(grad)
        optimizer.step()
        after.append(parameter.detach().numpy().copy())
    np.savez(GOLDENS / "adamw.npz", params0=start, grads=grads, params=np.stack(after))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smollm2", type=Path, help="SmolLM2-135M-Instruct as GGUF, for its tokenizer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    check_against_shared()
    write_models()
    write_adapters()
    write_adamw()
    write_released(GOLDENS / "released.pth")
    # The same weights as llama_adapter_p4.npz, so that its logits are this file's too.
    same = np.load(GOLDENS / "llama_adapter_p4.npz")
    write_lit_llama(GOLDENS / "lit_llama.pth", same, int(same["start_layer"]))
    write_tokenizers(GOLDENS / "tokenizers.json", arguments.smollm2)
    total = sum(file.stat().st_size for file in GOLDENS.rglob("*") if file.is_file())
    print(f"{GOLDENS}: {total / 1024:.0f} KB")


if __name__ == "__main__":
    main()
