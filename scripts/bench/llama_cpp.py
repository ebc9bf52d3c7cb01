"""Compares greedy texts of exported GGUF files in llama.cpp with ours; run from the repository's root.

    bash scripts/bench/install_llama_cpp.sh ENV
    LLAMA_PYTHON=ENV/bin/python python -m scripts.bench.llama_cpp [--base=PATH] [--adapter=PATH] [--cases=o,lora_f16]

Ours are base and adapter in float32, with the base as its files store it. Every continuation of llama.cpp is checked
token by token: it is our greedy text if each of its tokens has the largest of our logits. The result is a Markdown
table. "gap" is the difference of our logits between our token and llama.cpp's where they first differ. llama.cpp rounds
activations to 8 bits where weights are quantized, so that such files differ at near ties. Cases named f32 are files of
which all weights are written anew from a Hugging Face folder. With PEER_PYTHON (see scripts.bench.exported_logits) they
are also compared with transformers, which loads that folder.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import aligner_jax as aj
from aligner_jax.data.sources import load_examples
from aligner_jax.exports.forms import EXPORT_FORMS
from aligner_jax.exports.job import Job
from aligner_jax.exports.source import StoredBase, open_stored
from aligner_jax.peft.fold import Target
from aligner_jax.studies.flag_values import MODEL, names
from scripts.bench.exported_logits import random_adapter
from scripts.bench.protocol import PEER_VARIABLE, ROOT, Worker

HELDOUT = ROOT / "aligner_jax" / "data" / "quickstart" / "heldout.jsonl"
_VARIABLE = "LLAMA_PYTHON"
_CONTEXT = 512


@dataclasses.dataclass(frozen=True)
class Case:
    """One file: the adapter's method (None: the base alone) and options, the projection of a prefix's bias, and types.

    Attributes:
      dtype: type of changed tensors, or of all of them if `whole`.
      trained: True if the flag --adapter gives the adapter.
      whole: True if all weights are written anew, not copied from the base's GGUF file.
    """

    method: str | None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    target: Target = "o"
    dtype: str = "stored"
    trained: bool = False
    whole: bool = False


_LORA = {"rank": 4, "targets": ("q", "v", "o", "down")}
CASES = {
    "base": Case(None),
    "o": Case("aligner", trained=True),
    "v": Case("aligner", {"gates": "kv_head"}, "v"),
    "lora_f16": Case("lora", _LORA, dtype="float16"),
    "lora_q8_0": Case("lora", _LORA, dtype="q8_0"),
    "f32": Case(None, dtype="float32", whole=True),
    "f32_o": Case("aligner", dtype="float32", trained=True, whole=True),
    "f32_v": Case("aligner", {"gates": "kv_head"}, "v", dtype="float32", whole=True),
    "f32_lora": Case("lora", _LORA, dtype="float32", whole=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default=MODEL, help="a GGUF file (default %(default)s)")
    parser.add_argument("--adapter", help="an adapter for the cases o and f32_o (default: random arrays)")
    parser.add_argument("--cases", type=names(tuple(CASES)), default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--prompts", type=int, default=20, help="number of prompts (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=32, help="most tokens of a continuation (default %(default)s)")
    args = parser.parse_args()
    python = os.environ.get(_VARIABLE, "")
    if not os.access(python, os.X_OK):
        sys.exit(f"error: {_VARIABLE} does not name an interpreter: bash scripts/bench/install_llama_cpp.sh ENV")
    with tempfile.TemporaryDirectory() as scratch, Worker(python, "-m", "scripts.bench.peers.llama_cpp") as peer:
        compare(args, peer, Path(scratch))


def compare(args: argparse.Namespace, llama: Worker, scratch: Path) -> None:
    """Prints a table row for every case, and one more for transformers."""
    base, stored = aj.load_base(args.base), open_stored(args.base)
    assert base.tokenizer is not None
    texts = [
        base.tokenizer.render_chat([{"role": "user", "content": example.question}], add_generation_prompt=True)
        for example in list(load_examples(str(HELDOUT)))[: args.prompts]
    ]
    prompts = [base.tokenizer.encode(text) for text in texts]
    print(f"{args.base}, llama-cpp-python {llama.ask('about')['version']}, greedy, {args.tokens} tokens")
    print("| case | adapter | type | against | equal texts | largest gap | mean length | prompts with equal tokens |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.cases:
        case = CASES[name]
        adapter = random_adapter(base, case.method, case.options)
        if case.trained and args.adapter:
            adapter = aj.load_adapter(args.adapter, base)
        file = _write(stored, adapter, case, scratch / name)
        llama.ask("load", path=str(file), context=_CONTEXT)
        same = sum(llama.ask("tokens", text=text)["tokens"] == ids for text, ids in zip(texts, prompts, strict=True))
        stop = sorted(base.tokenizer.stop_ids)
        found = [llama.ask("generate", tokens=ids, num_tokens=args.tokens, stop=stop)["tokens"] for ids in prompts]
        rows_bt = _rows(prompts, found)
        logits = {"ours": np.asarray(aj.apply(base.params, adapter, jnp.asarray(rows_bt), config=base.config))}
        if case.whole and PEER_VARIABLE in os.environ:
            logits["transformers"] = _transformers(stored, adapter, rows_bt, scratch / f"{name}_hf")
        length = sum(map(len, found)) / len(found)
        for against, logits_btv in logits.items():
            gaps = _gaps(logits_btv, prompts, found)
            print(
                f"| {name} | {adapter} | {case.dtype} | {against} | {gaps.count(0.0)}/{len(gaps)} | {max(gaps):.2g} | "
                f"{length:.0f} | {same}/{len(texts)} |",
                flush=True,
            )


def _transformers(base: StoredBase, adapter: aj.Adapter | None, rows_bt: np.ndarray, folder: Path) -> np.ndarray:
    """Returns the logits of transformers, which loads an exported folder."""
    _export("hf", base, adapter, CASES["f32"], folder)
    with Worker.peer() as peer:
        peer.ask("load", folder=str(folder), dtype="float32")
        peer.ask("logits", rows=rows_bt.tolist(), to=str(folder / "logits.npy"))
        return np.load(folder / "logits.npy")


def _gaps(logits_btv: np.ndarray, prompts: Sequence[list[int]], found: Sequence[list[int]]) -> list[float]:
    """Returns our logit difference at the first token that is not ours, per continuation; 0 if all tokens are ours."""
    gaps = []
    for logits_tv, prompt, tokens in zip(logits_btv, prompts, found, strict=True):
        ours_tv = logits_tv[len(prompt) - 1 : len(prompt) - 1 + len(tokens)]
        lost = ours_tv.max(axis=1) - ours_tv[np.arange(len(tokens)), tokens]
        gaps.append(float(next((gap for gap in lost if gap > 0), 0.0)))
    return gaps


def _rows(prompts: Sequence[list[int]], found: Sequence[list[int]]) -> np.ndarray:
    rows = [[*prompt, *tokens] for prompt, tokens in zip(prompts, found, strict=True)]
    longest = max(map(len, rows))
    return np.asarray([row + [0] * (longest - len(row)) for row in rows], np.int32)


def _write(base: StoredBase, adapter: aj.Adapter | None, case: Case, folder: Path) -> Path:
    """Writes the case's GGUF file; returns its path."""
    if case.whole:
        plain = folder.with_name("plain")
        if not plain.exists():
            _export("hf", base, None, CASES["f32"], plain)
        base = open_stored(str(plain))
    elif adapter is None:
        return base.path
    _export("gguf", base, adapter, case, folder)
    return folder / EXPORT_FORMS["gguf"].file


def _export(form: str, base: StoredBase, adapter: aj.Adapter | None, case: Case, folder: Path) -> None:
    folder.mkdir()
    EXPORT_FORMS[form].write(Job(base, () if adapter is None else (adapter,), case.target, case.dtype), folder)


if __name__ == "__main__":
    main()
