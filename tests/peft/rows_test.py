"""Batches with an adapter per row; `method_contract` checks that each row equals its adapter alone."""

import jax.numpy as jnp
import pytest

from aligner_jax.errors import InputError
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params
from aligner_jax.peft import init_adapter
from aligner_jax.peft.rows import bind_rows, stack_adapters


def test_what_cannot_share_a_batch_is_refused(config: LlamaConfig, params: Params):
    one, three = (init_adapter("aligner", config, num_tokens=p) for p in (1, 3))
    with pytest.raises(InputError, match="one method and the same options"):
        stack_adapters([one, three])
    with pytest.raises(InputError, match="no adapters"):
        stack_adapters([])
    with pytest.raises(InputError, match="'full' cannot share a batch"):
        bind_rows(stack_adapters([init_adapter("full", config)] * 2), params, config, jnp.array([0, 1]))
