"""Completions of an OpenAI-compatible server that computes with this project's model."""

import json
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from judge_server import Reply, Request, failure

import aligner_jax as aj


def completions(
    base: aj.Base,
    adapter: aj.Adapter | None,
    *,
    ids: bool = True,
    refusal: int = 400,
    form: str = "text",
    noise: float = 0.0,
) -> Callable[[Request, int], Reply]:
    """Returns the replies of a server that applies an adapter, or none.

    Args:
      base: the base.
      adapter: the adapter; None gives the server's replies without it.
      ids: False refuses prompts of token ids, with the status `refusal`.
      form: "text" reports tokens as text, "ids" as vLLM does with ids, "chat" as llama.cpp does, "none" reports none.
      noise: standard deviation of what is added to the logits, as by quantization.
    """
    rng = np.random.default_rng(0)

    def reply(request: Request, number: int) -> Reply:
        assert request.path == "/v1/completions"
        body = request.body
        assert (body["max_tokens"], body["temperature"], body["logprobs"]) == (1, 0.0, 5)
        prompt = body["prompt"]
        if isinstance(prompt, list) and not ids:
            return failure(refusal, "prompt must be a string")
        tokens = prompt if isinstance(prompt, list) else base.tokenizer.encode(prompt, bos=base.tokenizer.add_bos)
        logits_v = aj.apply(base.params, adapter, jnp.asarray(tokens)[None], config=base.config)[0, -1]
        logits_v = logits_v + noise * jnp.asarray(rng.standard_normal(logits_v.shape), jnp.float32)
        log_probs_v = np.asarray(jax.nn.log_softmax(logits_v))
        top = {int(i): float(log_probs_v[i]) for i in np.argsort(-log_probs_v)[:5]}
        return Reply(json.dumps({"choices": [{"text": "", "logprobs": _reported(base, top, form)}]}).encode())

    return reply


def _reported(base: aj.Base, top: dict[int, float], form: str) -> dict | None:
    if form == "none":
        return None
    if form == "chat":
        return {"content": [{"top_logprobs": [{"id": i, "token": "?", "logprob": x} for i, x in top.items()]}]}
    named = {f"token_id:{i}" if form == "ids" else base.tokenizer.backend.token(i): x for i, x in top.items()}
    return {"top_logprobs": [named]}
