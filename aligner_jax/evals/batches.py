"""Groups rows of similar length into batches, so that few shapes are compiled.

The same rows always form the same batches.
"""

from collections.abc import Sequence

SHORTEST = 32


def length_bucket(length: int, longest: int) -> int:
    """Returns the length that a row of `length` tokens is padded to: 32, 48, 64, 96, 128, 192, …, at most `longest`.

    Consecutive lengths differ by a factor of at most 1.5, so at most a third of a row is padding, except in the
    shortest bucket.

    Raises:
      ValueError: the row is longer than `longest`.
    """
    if length > longest:
        raise ValueError(f"a row of {length} tokens does not fit {longest}")
    size = SHORTEST
    while size < length:
        # The buckets are powers of two and the numbers halfway between them.
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, longest)


def in_batches(buckets: Sequence[int], batch_size: int) -> list[list[int]]:
    """Returns batches of row indices. All rows of a batch have the same bucket.

    The longest bucket comes first, so that a lack of memory shows at once. Rows keep their order within a bucket, so
    equal rows give equal batches. A resumed evaluation is therefore bit-equal to an uninterrupted one: the last bits
    of a row's result can depend on the other rows of its batch.

    Args:
      buckets: padded length per row.
      batch_size: rows per batch at most.
    """
    by_bucket: dict[int, list[int]] = {}
    for number, bucket in enumerate(buckets):
        by_bucket.setdefault(bucket, []).append(number)
    return [
        numbers[start : start + batch_size]
        for _, numbers in sorted(by_bucket.items(), reverse=True)
        for start in range(0, len(numbers), batch_size)
    ]
