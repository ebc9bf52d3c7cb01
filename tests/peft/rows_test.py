"""Many adapters in one batch: each row as if its adapter were the only one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.llama import forward
from aligner_jax.model.params import Params
from aligner_jax.peft import hidden_states, init_adapter
from aligner_jax.peft.rows import bind_rows, stack_adapters, unstack_adapter

TOKENS_BT = np.random.default_rng(0).integers(0, 40, (4, 10)).astype(np.int32)
ADAPTER_B = np.array([2, 0, 0, 1])


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("aligner", {"num_tokens": 1}), ("aligner", {"num_tokens": 3}), ("llama_adapter", {"num_tokens": 2}),
        ("lora", {"rank": 2, "targets": ("q", "v", "o", "down")}), ("prompt", {"num_tokens": 2}),
        ("prefix", {"num_tokens": 2}), ("bias", {}), ("bias", {"target": "v"}),
    ],
)  # fmt: skip
def test_a_row_is_what_it_is_with_its_adapter_alone(
    method: str, options: dict, config: LlamaConfig, params: Params, randomized
):
    adapters = [randomized(init_adapter(method, config, **options), key) for key in range(3)]
    stacked = stack_adapters(adapters)

    @jax.jit
    def together(trainable, adapter_b):
        bound = bind_rows(stacked.replace(trainable=trainable), params, config, adapter_b)
        positions_bt = jnp.arange(10, dtype=jnp.int32)[None] + bound.first_position
        return forward(params, TOKENS_BT, config=config, adapted=bound.adapted, positions_bt=positions_bt)

    hidden_btd = together(stacked.trainable, ADAPTER_B)
    for row, number in enumerate(ADAPTER_B):
        alone, _ = hidden_states(params, adapters[number], TOKENS_BT[row : row + 1], config=config)
        np.testing.assert_allclose(hidden_btd[row], alone[0], atol=1e-5)
        jax.tree.map(
            np.testing.assert_array_equal, unstack_adapter(stacked, number).trainable, adapters[number].trainable
        )
    others = together(jax.tree.map(lambda x: x.at[1].add(1.0), stacked.trainable), ADAPTER_B)
    np.testing.assert_array_equal(others[:3], hidden_btd[:3])
    assert np.abs(others[3] - hidden_btd[3]).max() > 1e-3


def test_what_cannot_share_a_batch_is_refused(config: LlamaConfig, params: Params):
    one, three = (init_adapter("aligner", config, num_tokens=p) for p in (1, 3))
    with pytest.raises(InputError, match="one method and the same options"):
        stack_adapters([one, three])
    with pytest.raises(InputError, match="no adapters"):
        stack_adapters([])
    with pytest.raises(InputError, match="'full' cannot share a batch"):
        bind_rows(stack_adapters([init_adapter("full", config)] * 2), params, config, ADAPTER_B)
