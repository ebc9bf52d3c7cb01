"""The worker of this package; scripts.bench.train and generate start it and speak to it through its stdin."""

import itertools
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import aligner_jax as aj
from aligner_jax.data import pipeline
from aligner_jax.data.sources import load_examples
from aligner_jax.decoding.choose import Sampling
from aligner_jax.decoding.sampler import continue_ids
from aligner_jax.objectives.step import Step, TrainState, init_state, make_step
from aligner_jax.peft import init_adapter
from aligner_jax.runtime import command, optim, platform
from aligner_jax.runtime.config import OptimConfig
from aligner_jax.weights.base import Base
from aligner_jax.weights.hf_write import write_hf_folder
from scripts.bench import protocol

CONFIG = protocol.ROOT / "configs" / "quickstart.py"


class Ours:
    """A model, and the training of one adapter over it."""

    base: Base
    step: Step
    state: TrainState
    batches: Iterator[pipeline.Batch]

    def about(self) -> dict[str, Any]:
        """Returns the quickstart's remat, which is measured here, and the versions of JAX."""
        versions = {name: metadata.version(name) for name in ("jax", "jaxlib")}
        return {"remat": command.load_config(CONFIG)["remat"], "versions": versions}

    def tokenize(self, base: str, data: str, sequence_length: int, count: int) -> dict[str, Any]:
        """Tokenizes a file's first examples in the Alpaca template, loss on the answers; leaves out longer ones."""
        tokenizer = aj.load_base(base).tokenizer
        if tokenizer is None:
            raise ValueError(f"{base} has no tokenizer")
        documents, _ = pipeline.tokenize_examples(
            load_examples(data)[:count], tokenizer, "alpaca", sequence_length=sequence_length, overlong="drop"
        )
        plain = [{name: np.asarray(x).astype(int).tolist() for name, x in document.items()} for document in documents]
        return {"documents": plain}

    def export(self, base: str, folder: str, dtype: str) -> dict[str, Any]:
        """Writes the model as a Hugging Face folder."""
        loaded = aj.load_base(base, dtype)
        write_hf_folder(Path(folder), loaded.config, loaded.params)
        return {"num_layers": loaded.config.num_layers}

    def logits(self, base: str, rows: list[list[int]], to: str) -> dict[str, Any]:
        """Writes the float32 logits of equally long rows to a file, from the original model and not its export."""
        loaded = aj.load_base(base)
        np.save(to, np.asarray(aj.apply(loaded.params, None, jnp.asarray(rows, jnp.int32), config=loaded.config)))
        return {}

    def load(self, folder: str, dtype: str) -> dict[str, Any]:
        self.base = aj.load_base(folder, dtype)
        return {}

    def train(
        self, documents: list[dict], rows: dict[str, Any], method: str, options: dict[str, Any], remat: Any
    ) -> dict[str, Any]:
        """Prepares the step and the batches as aligner_jax.train does.

        Args:
          rows: batch_size, sequence_length and packing. Packed rows come shuffled from the endless training stream.
            Other rows repeat in the given order, so that both sides see the same ones.
        """
        config = OptimConfig()
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
        adapter = init_adapter(method, self.base.config, key=0, **given)
        optimizer = optim.make_optimizer(config, steps=1000)
        adapter = adapter.replace(trainable=optim.to_state_dtype(adapter.trainable, config))
        step = make_step(adapter, optimizer, config=self.base.config, accumulate=config.accumulate, remat=remat)
        self.step = jax.jit(step, donate_argnums=0)
        self.state = init_state(adapter, optimizer)
        examples = [
            pipeline.Document(
                tokens=np.asarray(document["tokens"], np.int32), loss_mask=np.asarray(document["loss_mask"], bool)
            )
            for document in documents
        ]
        if rows["packing"]:
            self.batches = pipeline.train_batches(examples, seed=0, **rows)
        else:
            self.batches = itertools.cycle(pipeline.eval_batches(examples, **rows))
        return {"parameters": adapter.num_params}

    def steps(self, count: int) -> dict[str, Any]:
        """Runs a turn; returns its time, tokens without padding, and losses. The time includes making the batches."""
        began, tokens, all_metrics = time.perf_counter(), 0, []
        for _ in range(count):
            batch = next(self.batches)
            self.state, metrics = self.step(self.state, self.base.params, batch)
            tokens += int(np.count_nonzero(batch.segment_ids_bt))
            all_metrics.append(metrics)
        losses = [float(metrics.loss) for metrics in jax.device_get(all_metrics)]
        jax.block_until_ready(self.state)
        return {"seconds": time.perf_counter() - began, "tokens": tokens, "losses": losses}

    def generate(self, prompts: list[list[int]], new_tokens: int) -> dict[str, Any]:
        """Continues all prompts at once, greedily; stop tokens end none of them."""
        began = time.perf_counter()
        steps = continue_ids(
            self.base.params, None, prompts, config=self.base.config, max_new_tokens=new_tokens, sampling=Sampling()
        )
        tokens = list(zip(*steps, strict=True))
        return {"seconds": time.perf_counter() - began, "tokens": tokens}


if __name__ == "__main__":
    platform.prepare()
    ours = Ours()
    names = ("about", "tokenize", "export", "logits", "load", "train", "steps", "generate")
    handlers = {name: getattr(ours, name) for name in names}
    protocol.serve({**handlers, "peak_memory": protocol.peak_memory})
