"""Held-out losses: a packed document has the loss of the document alone, in any row."""

import jax
import numpy as np
import pytest

from aligner_jax.errors import InputError
from aligner_jax.evals.heldout import DocumentLoss, document_losses, heldout_loss, mean_loss
from aligner_jax.model.config import LlamaConfig
from aligner_jax.model.params import Params

A, B, C = ([1, 2, 3, 4], [0, 0, 1, 1]), ([5, 6, 7, 8, 9], [0, 1, 1, 1, 1]), ([3, 1, 2], [0, 0, 1])


def test_each_document_has_its_own_loss(config: LlamaConfig, params: Params, pack, trained_adapter):
    adapter = trained_adapter()
    packed = [pack([[A, B], [C]], 12), pack([[B], []], 12)]
    found = document_losses(params, adapter, packed, config=config)
    alone = [document_losses(params, adapter, [pack([[each]], 12)], config=config) for each in (A, B, C, B)]
    assert [each.targets for each in found] == [2, 4, 1, 4]
    np.testing.assert_allclose([each.nats for each in found], [each.nats for (each,) in alone], rtol=1e-5)
    assert len({round(each.nats, 3) for each in found}) == 3
    total = sum(each.nats for each in found)
    assert heldout_loss(params, adapter, packed, config=config) == pytest.approx(total / 11)


def test_the_base_has_other_losses_on_the_same_documents(config: LlamaConfig, params: Params, pack, trained_adapter):
    batches = [jax.tree.map(np.asarray, pack([[A, C], [B]], 12))]
    base, adapted = (document_losses(params, each, batches, config=config) for each in (None, trained_adapter()))
    assert [each.targets for each in base] == [each.targets for each in adapted] == [2, 1, 4]
    assert all(abs(one.nats - other.nats) > 1e-3 for one, other in zip(base, adapted, strict=True))


def test_a_loss_without_targets_is_refused():
    assert mean_loss([DocumentLoss(3.0, 2), DocumentLoss(0.0, 0), DocumentLoss(1.0, 2)]) == 1.0
    with pytest.raises(InputError, match="no target tokens"):
        mean_loss([DocumentLoss(0.0, 0)])
