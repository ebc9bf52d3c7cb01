"""Rows of like lengths together: few lengths are compiled, and the same documents always make the same batches."""

from collections.abc import Sequence

SHORTEST = 32


def length_bucket(length: int, longest: int) -> int:
    """What a row of `length` tokens is padded to: 32, 48, 64, 96, 128, 192, …, at most `longest`.

    Each is at most 1.5 times the one before, so no more than a third of a row is padding, but in the shortest.

    Raises:
      ValueError: the row is longer than `longest`.
    """
    if length > longest:
        raise ValueError(f"a row of {length} tokens does not fit {longest}")
    size = SHORTEST
    while size < length:
        # Powers of two and the numbers half way between them.
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, longest)


def in_batches(buckets: Sequence[int], batch_size: int) -> list[list[int]]:
    """The numbers of the rows, in batches of one bucket each, longest first: what takes most is known at once.

    The order within a bucket is that of the rows, so that the batches are the same whenever the rows are. That is what
    makes a resumed evaluation give the very bits of one that ran through: a row's last bits can depend on its batch.
    """
    by_bucket: dict[int, list[int]] = {}
    for number, bucket in enumerate(buckets):
        by_bucket.setdefault(bucket, []).append(number)
    return [
        numbers[start : start + batch_size]
        for _, numbers in sorted(by_bucket.items(), reverse=True)
        for start in range(0, len(numbers), batch_size)
    ]
