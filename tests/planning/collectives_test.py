"""Collectives of compiled programs: read from the program's text, checked against programs with known ones."""

import json
import sys

import jax
import jax.numpy as jnp
import many_devices
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from aligner_jax.planning.collectives import Collective, bytes_by_kind, collectives
from aligner_jax.runtime import sharding

LAYERS, WIDTH = 5, 64


def in_a_loop() -> list[Collective]:
    """Returns the collectives of a scan over sharded layers: one gather of each layer's weights."""
    mesh = sharding.make_mesh(data=2, fsdp=4)
    weights_ldf = jax.ShapeDtypeStruct(
        (LAYERS, WIDTH, WIDTH), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    )
    rows = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    x_bd = jax.ShapeDtypeStruct((16, WIDTH), jnp.float32, sharding=rows)

    def step(weights_ldf, x_bd):
        def layer(x_bd, weight_df):
            whole_df = jax.lax.with_sharding_constraint(weight_df, NamedSharding(mesh, PartitionSpec()))
            return jax.lax.with_sharding_constraint(jnp.tanh(x_bd @ whole_df), rows), None

        return jax.lax.scan(layer, x_bd, weights_ldf)[0].sum()

    return collectives(jax.jit(step).lower(weights_ldf, x_bd).compile().as_text())


@pytest.fixture(scope="module")
def of_child() -> list[Collective]:
    child = many_devices.run([sys.executable, __file__], 8)
    assert child.returncode == 0, child.stderr
    return [Collective(*each) for each in json.loads(child.stdout)]


def test_a_gather_within_a_loop_counts_once_a_trip(of_child: list[Collective]):
    assert Collective("all-gather", WIDTH * WIDTH * 4, 4, LAYERS) in of_child
    assert bytes_by_kind(of_child)["all-gather"] == LAYERS * WIDTH * WIDTH * 4


def test_the_sum_over_all_rows_is_one_number_from_all_devices(of_child: list[Collective]):
    assert [c for c in of_child if c.kind == "all-reduce"] == [Collective("all-reduce", 4, 8, 1)]


TPU = """HloModule jit_step

%fused.1 (p: bf16[1,4096,1376]) -> bf16[1,4096,11008] {
  ROOT %ag = bf16[1,4096,11008]{2,1,0:T(8,128)} all-gather(%p), channel_id=7, GROUPS
}

%fused.2 (p: bf16[1,4096,1376]) -> bf16[1,4096,11008] {
  ROOT %ag = bf16[1,4096,11008]{2,1,0:T(8,128)} all-gather(%p), channel_id=7, GROUPS
}

%body (x: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %a = bf16[1,4096,11008] fusion(%x), kind=kCustom, calls=%fused.1
  %b = bf16[1,4096,11008] fusion(%x), kind=kCustom, calls=%fused.2
  %r = (f32[10]{0}, f32[3]{0}) all-reduce(%x, %x), replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
}

%condition (x: (s32[], bf16[8,4])) -> pred[] {
  %c = s32[]{:T(128)} constant(30), metadata={}
  ROOT %lt = pred[]{:T(512)} compare(%i, %c), direction=LT
}

ENTRY %main (x: bf16[8,4]) -> bf16[8,4] {
  %w = (s32[], bf16[8,4]) while(%x), condition=%condition, body=%body
  %s = (s4[64]{0}, s4[512]{0}) all-gather-start(%x), channel_id=9, replica_groups=[1,8]<=[8], dimensions={0}
  %p = bf16[8,4]{1,0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
}
"""


def test_the_text_of_the_tpu_compiler():
    text = TPU.replace("GROUPS", "replica_groups=mesh['data'=2,'fsdp'=8] {'fsdp'}, dimensions={1}")
    gather, reduce, start, permute = sorted(collectives(text), key=lambda c: -c.nbytes * c.runs)
    # Both halves of an asynchronous gather count as one, and the loop's trip count is in its condition.
    assert gather == Collective("all-gather", 4096 * 11008 * 2, 8, 30)
    assert reduce == Collective("all-reduce", 13 * 4, 4, 30)
    # A start's outputs are its argument and the result; the larger one counts.
    assert start == Collective("all-gather", 256, 8, 1)
    assert permute == Collective("collective-permute", 64, 2, 1)
    assert gather.received == 4096 * 11008 * 2 * 30 * 7 / 8
    assert reduce.received == 2 * 13 * 4 * 30 * 3 / 4


if __name__ == "__main__":
    print(json.dumps([list(each) for each in in_a_loop()]))
