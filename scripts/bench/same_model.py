"""Exports one model to both sides and checks that both compute the same; part of scripts.bench.train and generate."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from aligner_jax.studies.flag_values import MODEL, names
from scripts.bench.protocol import ROOT, Worker

DATA = ROOT / "aligner_jax" / "data" / "quickstart" / "train.jsonl"
DTYPES = ("bfloat16", "float32")
TOLERANCE = 1e-3
"""Largest difference of float32 logits allowed between the two sides."""


def add_arguments(parser) -> None:
    """Adds the options that both scripts have."""
    parser.add_argument(
        "--base", default=MODEL, help="the model, anything that aj.load_base reads (default %(default)s)"
    )
    parser.add_argument("--data", default=str(DATA), help="Alpaca JSON or JSON lines (default the quickstart's)")
    parser.add_argument("--dtype", type=names(DTYPES), default=",".join(DTYPES), help="some of %(default)s")
    parser.add_argument("--json", type=Path, help="a file for all turns as they were measured")


def prepare(base: str, data: str, dtypes: list[str], scratch: Path, *, examples: int, peer: bool) -> dict[str, Any]:
    """Exports the model, tokenizes examples and, if there is a peer, checks that it computes the same logits.

    Returns:
      The answers of both `about` commands, num_layers, documents, and folders by dtype.
    """
    if not Path(base).exists():
        sys.exit(
            f"error: there is no model at {base}; bash scripts/quickstart.sh gets one, and --base=PATH names another"
        )
    found: dict[str, Any] = {"folders": {dtype: str(scratch / dtype) for dtype in {"float32", *dtypes}}}
    with Worker.ours(scratch / "cache") as ours:
        found["ours"] = ours.ask("about")
        for dtype, folder in found["folders"].items():
            found |= ours.ask("export", base=base, folder=folder, dtype=dtype)
        found |= ours.ask("tokenize", base=base, data=data, sequence_length=512, count=examples)
        rows = check_rows(found["documents"]) if peer else []
        if peer:
            ours.ask("logits", base=base, rows=rows, to=str(scratch / "ours.npy"))
    if peer:
        with Worker.peer() as other:
            found["peer"] = other.ask("about")
            other.ask("load", folder=found["folders"]["float32"], dtype="float32")
            other.ask("logits", rows=rows, to=str(scratch / "peer.npy"))
        found["largest_difference"] = check_logits(np.load(scratch / "ours.npy"), np.load(scratch / "peer.npy"))
        print(f"logits in float32 differ by at most {found['largest_difference']:.1e}", flush=True)
    return found


def check_rows(documents: list[dict[str, list[int]]]) -> list[list[int]]:
    """Returns the first tokens of the first examples, equally long."""
    chosen = documents[:4]
    length = min(48, *(len(document["tokens"]) for document in chosen))
    return [document["tokens"][:length] for document in chosen]


def check_logits(ours_btv: np.ndarray, peer_btv: np.ndarray) -> float:
    """Returns the largest difference. Ends the program if the two sides are not the same model."""
    if ours_btv.shape != peer_btv.shape:
        sys.exit(f"error: our logits have shape {ours_btv.shape} and the peer's {peer_btv.shape}")
    difference = float(np.max(np.abs(ours_btv - peer_btv)))
    if not difference <= TOLERANCE:
        sys.exit(f"error: logits differ by {difference:.1e}, more than {TOLERANCE:.0e}: the peer has another model")
    return difference
