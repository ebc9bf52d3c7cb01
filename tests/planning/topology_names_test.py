"""Names of topologies, as libtpu, gcloud and GKE write them."""

import math
import re

import pytest

from aligner_jax.planning.topology_names import EXAMPLES, SLICES, accelerator_types, topology_name

CORES = {"v4": 2, "v5p": 2}


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("v5e:2x4", "v5e:2x4"),
        ("tpu7x:2x2x1", "tpu7x:2x2x1"),
        ("v5litepod-8", "v5e:2x4"),
        ("v5e-8", "v5e:2x4"),
        ("v6e-8", "v6e:2x4"),
        ("v4-8", "v4:2x2x1"),
        ("v5p-8", "v5p:2x2x1"),
        ("v5p-12288", "v5p:16x16x24"),
        ("tpu-v5-lite-podslice:4x4", "v5e:4x4"),
        ("tpu-v5p-slice:2x2x4", "v5p:2x2x4"),
        ("v5e", None),
        ("v5litepod-9", None),
        ("v4-7", None),
        ("v5e:2x", None),
        ("v5e:2x4;", None),
        ("", None),
    ],
)
def test_a_name_is_translated(name: str, shape: str | None):
    assert topology_name(name) == shape


@pytest.mark.parametrize("kind", SLICES)
def test_the_number_is_that_of_chips_or_of_their_cores(kind: str):
    for number, shape in SLICES[kind][1].items():
        chips = math.prod(map(int, shape.split("x")))
        assert chips * CORES.get(kind, 1) == number


def test_examples_are_names():
    names = re.findall(r"[a-z]\w*[:-][\dx]+", EXAMPLES)
    assert len(names) == 8
    assert all(topology_name(name) for name in names)


def test_a_wrong_size_is_answered_with_the_right_ones():
    assert accelerator_types("v4-7") == "v4-8, v4-16, v4-32, v4-64, v4-128, v4-256, v4-512, v4-1024, v4-2048, v4-4096"
    assert accelerator_types("v9-8") is accelerator_types("v4") is None
