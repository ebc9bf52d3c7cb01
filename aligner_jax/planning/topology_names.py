"""Names of TPU topologies, as libtpu writes them and as gcloud, XPK and GKE do."""

import re

_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4", 256: "4x4x8", 512: "4x8x8", 1024: "8x8x8",
    2048: "8x8x16", 4096: "8x16x16",
}  # fmt: skip
SLICES: dict[str, tuple[str, dict[int, str]]] = {
    "v5litepod": ("v5e", _FLAT),
    "v5e": ("v5e", _FLAT),
    "v6e": ("v6e", _FLAT),
    "v4": ("v4", _CUBES),
    "v5p": ("v5p", _CUBES | {8192: "16x16x16", 12288: "16x16x24"}),
}
"""Chip and shapes by the number after the dash, for each beginning of an accelerator type.

The number is that of chips on v5e and v6e, and that of TensorCores, two a chip, on v4 and v5p.
"""

_LABELS = {
    "tpu-v4-podslice": "v4",
    "tpu-v5-lite-podslice": "v5e",
    "tpu-v5-lite-device": "v5e",
    "tpu-v5p-slice": "v5p",
    "tpu-v6e-slice": "v6e",
}
"""Chips by the label cloud.google.com/gke-tpu-accelerator of GKE."""

EXAMPLES = "v4:2x2x1, v5e:2x4, v5p:4x4x4, v6e:8x8 or tpu7x:2x2x1, or v5litepod-8, v5p-128 or v6e-64 as gcloud has them"


def topology_name(name: str) -> str | None:
    """Returns a topology's name as libtpu has it, such as "v5e:2x4"; None if it cannot be one.

    Args:
      name: "v5e:2x4"; or an accelerator type of gcloud and XPK, "v5litepod-8"; or label and shape of GKE,
        "tpu-v5-lite-podslice:2x4".
    """
    if found := re.fullmatch(r"([a-z0-9]+)-(\d{1,5})", name):
        chip, shapes = SLICES.get(found[1], ("", {}))
        return f"{chip}:{shapes[int(found[2])]}" if int(found[2]) in shapes else None
    chip, _, shape = name.partition(":")
    name = f"{_LABELS.get(chip, chip)}:{shape}"
    return name if re.fullmatch(r"\w+:\d+(x\d+)*", name) else None


def accelerator_types(name: str) -> str | None:
    """Returns the accelerator types of the same kind as a mistaken one, or None if the kind is not known."""
    kind, dash, _ = name.rpartition("-")
    return ", ".join(f"{kind}-{size}" for size in SLICES[kind][1]) if dash and kind in SLICES else None
