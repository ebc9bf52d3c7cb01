"""The worker of scripts.bench.llama_cpp that runs llama.cpp: needs llama-cpp-python, and nothing of this project."""

import itertools
from typing import Any

import llama_cpp

from scripts.bench import protocol

_F32 = 0
"""ggml's type of the cache of keys and values, which is F16 by default."""


class Peer:
    """A GGUF file in llama.cpp."""

    model: llama_cpp.Llama

    def about(self) -> dict[str, Any]:
        return {"version": llama_cpp.__version__}

    def load(self, path: str, context: int) -> dict[str, Any]:
        # Its threads wait for each other without rest, so one core is left for other work.
        threads = max(1, protocol.cores() - 1)
        self.model = llama_cpp.Llama(
            path,
            n_ctx=context,
            n_threads=threads,
            n_threads_batch=threads,
            type_k=_F32,
            type_v=_F32,
            flash_attn=False,
            verbose=False,
        )
        return {}

    def tokens(self, text: str) -> dict[str, Any]:
        return {"tokens": self.model.tokenize(text.encode(), add_bos=False, special=True)}

    def generate(self, tokens: list[int], num_tokens: int, stop: list[int]) -> dict[str, Any]:
        """Returns greedy tokens, the first of `stop` included."""
        self.model.reset()
        found = []
        steps = self.model.generate(tokens, top_k=1, temp=0.0, repeat_penalty=1.0)
        for token in itertools.islice(steps, num_tokens):
            found.append(int(token))
            if token in stop:
                break
        return {"tokens": found}


if __name__ == "__main__":
    peer = Peer()
    protocol.serve({name: getattr(peer, name) for name in ("about", "load", "tokens", "generate")})
