"""Compares attention kernels by the programs that the TPU compiler makes of them; no TPU is needed.

    python -m scripts.bench.attention --static
    python -m scripts.bench.attention --static --chips v5e --lengths 4096 --head-dims 128 --json attention.json
    python -m scripts.bench.attention --compile

--static prints, for each chip and shape, the static bundles issued for one query head and row (counted by
static_bundles.py) and the bytes moved to and from HBM: for this project's kernel with a prefix of ten tokens and
without, of JAX's splash attention with the same blocks, and of splash attention with the prefix added by XLA. A
bundle counts as often as it is issued: in a loop for each iteration, in a branch each time that it is entered. For
XLA's part the count is a lower bound: loops inside an iteration of a fusion's grid count once. The bytes are block
fetches times the bytes of a block; for XLA's part they come from its cost analysis.

--compile compiles attention and its gradients for every generation, head dim, length and prefix that the package
promises.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.bench import static_bundles

DUMP = Path(tempfile.gettempdir()) / f"attention_bundles_{os.getpid()}"
os.environ.update(TPU_SKIP_MDS_QUERY="1", JAX_PLATFORMS="cpu", ALLOW_MULTIPLE_LIBTPU_LOAD="1")
static_bundles.dump_to(DUMP)

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from aligner_jax.model.attention import Prefix, attend
from aligner_jax.model.kernels import flash
from aligner_jax.model.kernels.blocks import default_blocks
from aligner_jax.model.kernels.xla import attend_prefix_per_head

TOPOLOGIES = {"v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
HEADS, BLOCK, TOKENS = 8, 512, 10


@dataclasses.dataclass(frozen=True)
class Count:
    """Counts of one arm and pass: static bundles and HBM bytes per head."""

    bundles: float
    hbm_bytes: float

    def __add__(self, other: "Count") -> "Count":
        return Count(self.bundles + other.bundles, self.hbm_bytes + other.hbm_bytes)


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of causal attention over one row; t is a multiple of the block."""

    t: int
    h: int

    @property
    def blocks(self) -> int:
        return self.t // BLOCK

    @property
    def visited(self) -> int:
        """Returns the number of pairs of blocks on or under the diagonal."""
        return self.blocks * (self.blocks + 1) // 2

    @property
    def tensor(self) -> int:
        """Returns the bytes of one head's queries, padded to 128 lanes as in HBM."""
        return self.t * 128 * 2

    @property
    def block(self) -> int:
        return self.tensor // self.blocks


class Compiler:
    """Compiles for one device of a topology; the dump folder is emptied first."""

    def __init__(self, chip: str):
        with quiet():
            devices = topologies.get_topology_desc(platform="tpu", topology_name=TOPOLOGIES[chip]).devices
        self.mesh = Mesh(np.array(devices[:1]), ("x",))

    def array(self, *shape: int, dtype=jnp.bfloat16) -> Any:
        """Returns an abstract array for a program's arguments."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, PartitionSpec()))

    def __call__(self, function, *arguments):
        shutil.rmtree(DUMP, ignore_errors=True)
        with quiet():
            return jax.jit(function).lower(*arguments).compile()


@contextlib.contextmanager
def quiet():
    """Silences the warnings about metadata that libtpu writes past Python, also when a topology is made."""
    sys.stderr.flush()
    saved, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(null)


def text_of(compiled: jax.stages.Compiled) -> str:
    """Returns the program's HLO, which the TPU compiler always gives."""
    text = compiled.as_text()
    assert text is not None
    return text


def issued(name: str, times: Mapping[str, Sequence[float]]) -> float:
    """Returns the bundles per head of the program just compiled; `times` has an entry for each possible structure."""
    program = static_bundles.read(DUMP, name)
    if program.kinds not in times:
        sys.exit(f"error: {name} compiles to {program.regions}, which this script cannot weigh")
    return program.issued(times[program.kinds]) / HEADS


def ours(compile_: Compiler, chip: str, shape: Shape, tokens: int) -> dict[str, Count]:
    """Counts our forward pass, with residuals, and our backward pass; programs are (head, block of queries)."""
    t, h, programs = shape.t, shape.h, HEADS * shape.blocks
    blocks = default_blocks(t, jnp.dtype("bfloat16"), chip)
    assert blocks.forward_span == blocks.backward_span == t, "this script weighs kernels of one span"
    text = [compile_.array(1, t, HEADS, h)] * 3
    prefix = [compile_.array(1, tokens, HEADS, h)] * 2 if tokens else [None, None]
    forward = functools.partial(flash.forward, residuals=True, blocks=blocks)
    compile_(lambda q, k, v, pk, pv: forward(q, k, v, None, pk, pv), *text, *prefix)
    below = shape.visited - shape.blocks
    entered, inner = programs - HEADS, HEADS * below
    # Regions: the loop over programs and its body; programs with keys before their diagonal; the loop over blocks of
    # keys.
    forward_bundles = issued("aligner_attention_forward", {"loop if if loop": [programs, programs, entered, inner]})

    log = compile_.array(1, HEADS, t, dtype=jnp.float32)
    backward = functools.partial(flash.backward, blocks=blocks)
    compile_(
        lambda o, log, do, q, k, v, pk, pv: backward(o, log, do, q, k, v, None, pk, pv),
        text[0], log, text[0], *text, *prefix,
    )  # fmt: skip
    # A head's first block of queries sets the prefix's gradients and the others add to them; its last block writes the
    # keys' gradients. The transfers may be a branch before the body.
    inside = [*([HEADS, entered] if tokens else []), entered, inner, HEADS]
    branches = "if if " if tokens else ""
    times = {
        f"{outer} {branches}if loop if": [programs] * len(outer.split()) + inside for outer in ("loop if", "loop if if")
    }
    backward_bundles = issued("aligner_attention_backward", times)

    # Keys and values of a head stay in VMEM, so each array is read and written once.
    prefix_bytes = -(-tokens // flash.PREFIX_ROWS) * flash.PREFIX_ROWS * 128
    log_bytes = t * 4
    outputs = 2 if tokens else 1
    return {
        "forward": Count(forward_bundles, (3 + outputs) * shape.tensor + log_bytes + 2 * 2 * prefix_bytes),
        "backward": Count(backward_bundles, 8 * shape.tensor + log_bytes + 2 * (2 + 4) * prefix_bytes),
    }


def splash_attention(compile_: Compiler, shape: Shape) -> dict[str, Count]:
    """Counts JAX's splash attention, forward with residuals; programs are (head, block of queries, block of keys)."""
    t, h = shape.t, shape.h
    sizes = splash.BlockSizes(
        block_q=BLOCK, block_kv=BLOCK, block_kv_compute=BLOCK, block_q_dkv=BLOCK, block_kv_dkv=BLOCK,
        block_kv_dkv_compute=BLOCK, block_q_dq=BLOCK, block_kv_dq=BLOCK,
    )  # fmt: skip
    masks = splash_attention_mask.MultiHeadMask([splash_attention_mask.CausalMask((t, t)) for _ in range(HEADS)])
    kernel = splash.make_splash_mha(masks, block_sizes=sizes, head_shards=1, q_seq_shards=1)

    def gradients(q, k, v, do):
        o, pull = jax.vjp(kernel, q, k, v)
        return o, pull(do)

    compile_(gradients, *[compile_.array(HEADS, t, h)] * 4)
    programs, once, run = HEADS * shape.blocks**2, HEADS * shape.blocks, HEADS * shape.visited
    # Regions: the loop over programs and its body; the first block of a row of blocks; blocks under the diagonal; the
    # last.
    times = {"loop if if if if": [programs, programs, once, run, once]}
    bundles = {name: issued(f"splash_mha_{name}", times) for name in _SPLASH_PROGRAMS}
    # Blocks of the outer loop are fetched once; blocks of the inner loop only on and under the diagonal. The
    # logarithms, and delta in the backward pass, are one float32 per query. XLA computes delta as a reduction of o and
    # do.
    row, inner = t * 4, shape.visited * shape.block
    return {
        "forward": Count(bundles["fwd_residuals"], 2 * shape.tensor + 2 * inner + row),
        "backward": Count(
            bundles["dq_no_residuals"] + bundles["dkv_no_residuals"],
            (2 * shape.tensor + row)  # delta
            + (3 * shape.tensor + 2 * inner + 2 * row)  # dq: q, do and dq once; k and v
            + (4 * shape.tensor + 2 * inner + 2 * shape.visited * BLOCK * 4),  # dk, dv: k, v, dk and dv once; q and do
        ),
    }


_SPLASH_PROGRAMS = ("fwd_residuals", "dq_no_residuals", "dkv_no_residuals")


def unfused_prefix(compile_: Compiler, shape: Shape) -> dict[str, Count]:
    """Counts the prefix by XLA, added to the output of another kernel. The bundles are a lower bound."""
    q, prefix = compile_.array(1, shape.t, HEADS, shape.h), compile_.array(1, TOKENS, HEADS, shape.h)

    def add(o, q, k, v):
        return o + attend_prefix_per_head(q, k, v)

    def gradients(q, k, v, do, dq):
        _, pull = jax.vjp(attend_prefix_per_head, q, k, v)
        of_prefix, *others = pull(do)
        return dq + of_prefix, *others

    def moved(function, *arguments):
        compiled = compile_(function, *arguments)
        bundles = static_bundles.issued_by_xla(DUMP, text_of(compiled))
        cost = compiled.cost_analysis()
        assert cost is not None
        return Count(bundles / HEADS, cost["bytes accessed"] / HEADS)

    return {"forward": moved(add, q, q, prefix, prefix), "backward": moved(gradients, q, prefix, prefix, q, q)}


def static(chips: list[str], head_dims: list[int], lengths: list[int]) -> list[dict]:
    rows = []
    for chip in chips:
        for h in head_dims:
            for t in lengths:
                shape, compile_ = Shape(t, h), Compiler(chip)
                peer = splash_attention(compile_, shape)
                prefix = unfused_prefix(compile_, shape)
                arms = {
                    f"ours, p = {TOKENS}": ours(compile_, chip, shape, TOKENS),
                    "ours, no prefix": ours(compile_, chip, shape, 0),
                    "splash": peer,
                    "splash + XLA prefix": {which: peer[which] + prefix[which] for which in peer},
                }
                for arm, counts in arms.items():
                    row = {"chip": chip, "head_dim": h, "length": t, "arm": arm}
                    for which, count in counts.items():
                        row[f"{which}_bundles"], row[f"{which}_hbm_bytes"] = count.bundles, count.hbm_bytes
                        row[f"{which}_bundles_of_splash"] = count.bundles / peer[which].bundles
                        whole = arms["splash + XLA prefix"][which].hbm_bytes
                        row[f"{which}_hbm_of_splash_and_prefix"] = count.hbm_bytes / whole
                    rows.append(row)
                    show(row)
    return rows


def show(row: dict) -> None:
    if row["arm"].endswith(f"= {TOKENS}"):
        print(f"\n{row['chip']}, head dim {row['head_dim']}, length {row['length']}: static bundles and HBM a head")
        names = [("forward", 10), ("/splash", 9), ("backward", 11), ("/splash", 9), ("fwd MB", 9), ("/both", 7)]
        print(f"{'':22}" + "".join(f"{name:>{width}}" for name, width in [*names, ("bwd MB", 9), ("/both", 7)]))
    cells = []
    for which, width in (("forward", 10), ("backward", 11)):
        cells.append(f"{row[f'{which}_bundles']:>{width},.0f}{row[f'{which}_bundles_of_splash']:>9.3f}")
    for which in ("forward", "backward"):
        cells.append(f"{row[f'{which}_hbm_bytes'] / 1e6:>9.2f}{row[f'{which}_hbm_of_splash_and_prefix']:>7.2f}")
    print(f"{row['arm']:22}{''.join(cells)}", flush=True)


def compile_all(chips: list[str]) -> None:
    """Compiles every promised shape and prints a line for each. Raises if one does not compile."""
    for chip in chips:
        compile_ = Compiler(chip)
        for h in (64, 128):
            for t in (512, 2048, 8192, 32768):
                for p in (2, 10, 300):
                    began = time.monotonic()

                    def gradients(q, k, v, prefix, do):
                        o, pull = jax.vjp(attend, q, k, v, prefix)
                        return o, pull(do)

                    q, kv = compile_.array(1, t, 4, h), compile_.array(1, t, 2, h)
                    tokens, gate = compile_.array(1, p, 2, h), compile_.array(1, 4, dtype=jnp.float32)
                    prefix = Prefix(tokens, tokens, gate)
                    program = text_of(compile_(gradients, q, kv, kv, prefix, q))
                    for name in ("aligner_attention_forward", "aligner_attention_backward"):
                        if name not in program:
                            sys.exit(f"error: {chip}, head dim {h}, length {t}, p = {p}: the program has no {name}")
                    seconds = time.monotonic() - began
                    print(f"{chip:6} head dim {h:3}  length {t:6}  p = {p:3}  compiles in {seconds:.1f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--static", action="store_true")
    what.add_argument("--compile", action="store_true")
    parser.add_argument("--chips", nargs="+", choices=TOPOLOGIES)
    parser.add_argument("--head-dims", nargs="+", type=int, choices=(64, 128), default=[128, 64])
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 4096])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.compile:
            return compile_all(arguments.chips or list(TOPOLOGIES))
        rows = static(arguments.chips or ["v5e", "v5p"], arguments.head_dims, arguments.lengths)
        if arguments.json is not None:
            arguments.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    finally:
        shutil.rmtree(DUMP, ignore_errors=True)


if __name__ == "__main__":
    main()
