"""Buckets and batches: few lengths, little padding, a deterministic order."""

import pytest

from aligner_jax.evals.batches import in_batches, length_bucket


def test_buckets_are_few_and_waste_at_most_a_third():
    buckets = [length_bucket(length, 4096) for length in range(1, 4097)]
    assert sorted(set(buckets)) == [32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096]
    assert all(length <= bucket and (bucket == 32 or bucket < 1.5 * length) for length, bucket in enumerate(buckets, 1))


def test_the_last_bucket_is_the_longest_row():
    assert length_bucket(400, 500) == 500
    assert length_bucket(5, 20) == 20
    with pytest.raises(ValueError, match="a row of 501 tokens does not fit 500"):
        length_bucket(501, 500)


def test_batches_are_of_one_bucket_longest_first_in_the_rows_order():
    assert in_batches([32, 64, 32, 64, 32, 32], 2) == [[1, 3], [0, 2], [4, 5]]
    assert in_batches([], 2) == []
