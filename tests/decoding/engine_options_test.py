"""Sizes of engines that follow from their options."""

import pytest

from aligner_jax.decoding.engine_options import EngineOptions, least_rows, rows_for
from aligner_jax.decoding.server_options import row_capacity, server_options
from aligner_jax.model.config import llama_config
from aligner_jax.peft.row_adapters import Capacity


@pytest.mark.parametrize(
    ("rows", "parts", "platform", "places"),
    [
        (100, 1, "cpu", 8),
        # 32 prompts of 16 tokens are prefilled at once, each with up to four adapters.
        (100, 1, "tpu", 128),
        (100, 4, "gpu", 400),
        (3, 1, "tpu", 12),
    ],
)
def test_all_prompts_of_a_program_have_places_for_their_adapters(rows: int, parts: int, platform: str, places: int):
    assert EngineOptions(rows=rows, slots=64, places=8).all_places(parts, platform) == places
    assert EngineOptions(rows=rows, slots=64, places=500).all_places(parts, platform) == 500


def test_short_parts_are_prefilled_in_larger_programs():
    assert EngineOptions(rows=100, slots=64, places=8, longest_part=8).all_places(1, "tpu") == 4 * 64


def test_a_bfloat16_row_is_not_alone():
    assert [least_rows(dtype) for dtype in ("bfloat16", "float32")] == [2, 1]


def test_the_parts_of_a_mesh_have_the_same_number_of_rows():
    assert [rows_for(wanted, "float32", 4) for wanted in (1, 4, 5)] == [4, 4, 8]
    assert [rows_for(1, dtype, 1) for dtype in ("bfloat16", "float32")] == [2, 1]
    assert rows_for(1, "bfloat16", 2) == 2


def test_a_servers_row_has_room_for_any_two_adapters():
    needs = [Capacity(tokens=3), Capacity(rank=4, factors=("q_ldnh",)), Capacity(tokens=10, biases=("o_bias_ld",))]
    assert row_capacity(needs, prefix_tokens=0) == Capacity(20, 8, ("q_ldnh",), ("o_bias_ld",))
    assert row_capacity(needs, prefix_tokens=24, rank=16) == Capacity(24, 16, ("q_ldnh", "v_ldkh"), ("o_bias_ld",))
    assert row_capacity([]) == Capacity(16)


def test_a_server_has_no_more_alternatives_than_tokens():
    config = llama_config("stories_260k")
    sizes = {"rows": 2, "slots": 64, "capacity": Capacity(), "places": 4}
    assert server_options(config, **sizes, alternatives=10**6).alternatives == config.vocab_size
    assert server_options(config, **sizes).alternatives == 20
