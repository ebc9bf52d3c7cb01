"""The peer's worker of scripts.bench.train, generate and gpu: torch, transformers and PEFT, in their own environment.

Written for transformers 5 and PEFT 0.21, with their fastest settings: a fused AdamW over the trained parameters alone,
no cache while training, no attention mask where nothing is padded, and adapters in the model's dtype (PEFT would make
LoRA's float32, and convert in every layer). On CPUs, all cores, sdpa attention and no gradient checkpointing; on GPUs
the arm names the attention and the checkpointing. PyTorch is eager, as PEFT's users run it; torch.compile is not tried.
"""

import gc
import itertools
import tempfile
import time
from collections.abc import Iterator
from importlib import metadata
from typing import Any

import numpy as np
import torch
from peft import AdaptionPromptConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from scripts.bench import protocol

IGNORED = -100
_TRAINED_ADAPTERS = {
    "adaption_prompt": lambda options: AdaptionPromptConfig(task_type="CAUSAL_LM", **options),
    "lora": lambda options: LoraConfig(task_type="CAUSAL_LM", **options),
}


class Peer:
    """A model, and the training of one adapter over it."""

    model: Any
    optimizer: torch.optim.Optimizer
    batches: Iterator[dict[str, torch.Tensor]]
    device = "cpu"

    def about(self) -> dict[str, Any]:
        """Returns the versions of the packages."""
        return {"versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft")}}

    def load(self, folder: str, dtype: str) -> dict[str, Any]:
        """Loads a Hugging Face folder on the CPU."""
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation="sdpa", local_files_only=True
        )
        self.model.eval()
        return {}

    def load_adapter(self, folder: str) -> dict[str, Any]:
        self.model = PeftModel.from_pretrained(self.model, folder).eval()
        return {}

    def make(
        self, sizes: dict[str, int], attention: str, checkpointing: bool = False, bits: int = 16, device: str = "cuda"
    ) -> dict[str, Any]:
        """Makes a model with random weights.

        Args:
          sizes: sizes by the names of Hugging Face's config.
          attention: `attn_implementation` of transformers.
          checkpointing: True for gradient checkpointing of every layer.
          bits: 16 for bfloat16; 8 or 4 for bitsandbytes' integers.
          device: torch's name of the device.
        """
        if bits != 16:
            # A missing package is noticed before the model is made.
            import bitsandbytes  # noqa: F401
        self.device = device
        with torch.device(device):
            config = LlamaConfig(**sizes, attn_implementation=attention)
            self.model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.bfloat16)
        if bits != 16:
            self._quantize(bits, attention)
        if checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.model.eval()
        if device == "cuda":
            # The peak is that of training or decoding.
            torch.cuda.reset_peak_memory_stats()
        return {}

    def _quantize(self, bits: int, attention: str) -> None:
        """Replaces the model by one whose projections bitsandbytes holds in 8 or 4 bits (NF4)."""
        quantization = BitsAndBytesConfig(
            load_in_8bit=bits == 8, load_in_4bit=bits == 4, bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16,
        )  # fmt: skip
        # transformers quantizes weights only while it reads them from files.
        with tempfile.TemporaryDirectory(prefix="bench_peer_") as folder:
            self.model.save_pretrained(folder)
            del self.model
            gc.collect()
            torch.cuda.empty_cache()
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.bfloat16, attn_implementation=attention, quantization_config=quantization,
                device_map={"": 0 if self.device == "cuda" else self.device}, local_files_only=True,
            )  # fmt: skip

    def gpu_memory(self) -> dict[str, int]:
        """Returns the peak of the memory that torch allocated on the GPU since `make`, in bytes."""
        return {"bytes": torch.cuda.max_memory_allocated()}

    def logits(self, rows: list[list[int]], to: str) -> dict[str, Any]:
        """Writes the float32 logits of equally long rows to a file."""
        with torch.no_grad():
            np.save(to, self.model(torch.tensor(rows), use_cache=False).logits.float().numpy())
        return {}

    def train(
        self, documents: list[dict], batch_size: int, method: str, options: dict[str, Any], padding_free: bool
    ) -> dict[str, Any]:
        """Adds the adapter to the model. Batches are the documents in the given order, repeated."""
        self.model.config.use_cache = False
        self.model = get_peft_model(self.model, _TRAINED_ADAPTERS[method](options), autocast_adapter_dtype=False)
        self.model.train()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=3e-4, weight_decay=0.02, fused=True)
        whole = len(documents) // batch_size * batch_size
        groups = [documents[i : i + batch_size] for i in range(0, whole, batch_size)]
        collate = _joined if padding_free else _padded
        self.batches = map(collate, itertools.cycle(groups))
        return {"parameters": sum(parameter.numel() for parameter in trained)}

    def steps(self, count: int) -> dict[str, Any]:
        """Runs a turn; returns its time, tokens without padding, and losses."""
        began, tokens, losses = time.perf_counter(), 0, []
        for _ in range(count):
            batch = next(self.batches)
            tokens += batch.pop("tokens")
            batch = {name: x.to(self.device) for name, x in batch.items()}
            loss = self.model(**batch, use_cache=False).loss
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
        return {"seconds": time.perf_counter() - began, "tokens": tokens, "losses": losses}

    def generate(self, prompts: list[list[int]], new_tokens: int, stop: list[int] | None = None) -> dict[str, Any]:
        """Continues prompts greedily, shorter ones padded on the left.

        Args:
          prompts: token ids.
          new_tokens: new tokens at most.
          stop: tokens that end a row. None ends none of them, and rows have `new_tokens` each.

        Returns:
          The seconds, and the new tokens of every row, the first of `stop` included.
        """
        began = time.perf_counter()
        length = max(map(len, prompts))
        ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts], device=self.device)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self.device)
        mask = (torch.arange(length, device=self.device)[None] >= length - lengths[:, None]).long()
        with torch.inference_mode():
            made = self.model.generate(
                ids, attention_mask=mask, do_sample=False, use_cache=True,
                max_new_tokens=new_tokens, eos_token_id=stop, pad_token_id=0,
            )  # fmt: skip
        rows = made[:, length:].tolist()
        ends = [next((i + 1 for i, token in enumerate(row) if token in (stop or ())), len(row)) for row in rows]
        tokens = [row[:end] for row, end in zip(rows, ends, strict=True)]
        return {"seconds": time.perf_counter() - began, "tokens": tokens}

    def check_padding_free(self, documents: list[dict]) -> dict[str, Any]:
        """Fails unless documents in one row have the loss that they have in padded rows, unseen by each other."""
        with torch.no_grad():
            losses = []
            for collate in (_padded, _joined):
                batch = collate(documents)
                del batch["tokens"]
                losses.append(self.model(**batch, use_cache=False).loss.item())
        if abs(losses[0] - losses[1]) > 0.01 * losses[0]:
            raise ValueError(f"the loss of padded rows is {losses[0]:.4f}, without padding {losses[1]:.4f}")
        return {}


def _padded(documents: list[dict]) -> dict[str, Any]:
    """Pads documents to the longest one; `tokens` counts tokens without padding."""
    lengths = [len(document["tokens"]) for document in documents]
    shape = (len(documents), max(lengths))
    ids, labels = torch.zeros(shape, dtype=torch.long), torch.full(shape, IGNORED)
    for row, document in enumerate(documents):
        ids[row, : lengths[row]] = torch.tensor(document["tokens"])
        labels[row, : lengths[row]] = _labels(document)
    batch: dict[str, Any] = {"input_ids": ids, "labels": labels, "tokens": sum(lengths)}
    if min(lengths) < max(lengths):
        batch["attention_mask"] = (torch.arange(shape[1])[None] < torch.tensor(lengths)[:, None]).long()
    return batch


def _joined(documents: list[dict]) -> dict[str, Any]:
    """Joins all documents in one row. Positions restart at each; transformers derives the mask from them."""
    labels = [_labels(document) for document in documents]
    for label in labels:
        label[0] = IGNORED
    ids = torch.cat([torch.tensor(document["tokens"]) for document in documents])
    positions = torch.cat([torch.arange(len(label)) for label in labels])
    rows = {"input_ids": ids, "labels": torch.cat(labels), "position_ids": positions}
    return {**{name: row[None] for name, row in rows.items()}, "tokens": len(ids)}


def _labels(document: dict) -> torch.Tensor:
    mask = torch.tensor(document["loss_mask"], dtype=torch.bool)
    return torch.where(mask, torch.tensor(document["tokens"]), IGNORED)


if __name__ == "__main__":
    torch.set_num_threads(protocol.cores())
    torch.manual_seed(0)
    peer = Peer()
    names = (
        "about", "load", "load_adapter", "make", "gpu_memory", "logits", "train", "check_padding_free", "steps",
        "generate",
    )  # fmt: skip
    handlers = {name: getattr(peer, name) for name in names}
    protocol.serve({**handlers, "peak_memory": protocol.peak_memory})
