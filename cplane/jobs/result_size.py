"""The size of results: what is too large is refused, as far as possible before it is encoded."""

from collections.abc import Collection
from itertools import islice
from typing import cast

from cplane.errors import ResultTooLarge

MAX_VALUES = 5_000
"""Values of a result that are counted before it is encoded: 0.5 ms."""

SEQUENCES = frozenset({list, tuple, set, frozenset})


def least_json_size(value: object, enough: int) -> int:
    """Return a size that the JSON of a value has at least, bytes, without encoding it.

    Args:
        value: a value of built-in types; others count as 1 byte.
        enough: counting ends when the size is above this.

    Returns:
        A lower bound: characters count as bytes, keys as empty, and a value of more than MAX_VALUES parts in part.
    """
    size, counted, pending = 1, 0, [value]  # each value counts 1 with the container that holds it
    while pending and size <= enough and counted < MAX_VALUES:
        counted += 1
        part = pending.pop()
        kind = type(part)
        if kind is str or kind is bytes:
            size += len(cast("str", part)) + 1
        elif kind is dict:
            pairs = cast("dict[object, object]", part)
            size += 5 * (count := len(pairs))
            pending += pairs.values() if count <= MAX_VALUES else islice(pairs.values(), MAX_VALUES)
        elif kind in SEQUENCES:
            parts = cast("Collection[object]", part)
            size += 2 * (count := len(parts))
            pending += parts if count <= MAX_VALUES else islice(parts, MAX_VALUES)
    return size


def too_large(job: str, size: int, max_bytes: int, *, exact: bool = True) -> ResultTooLarge:
    """Return the error for a result.

    Args:
        job: name of the job.
        size: size of the result, bytes.
        max_bytes: size of the largest result that is allowed, bytes.
        exact: False: the result has `size` bytes at least.
    """
    has = "has" if exact else "has at least"
    return ResultTooLarge(
        f"what '{job}' returned {has} {size:,} bytes, more than {max_bytes:,} (CPLANE_MAX_RESULT_BYTES)",
        hint="return a reference, keep the data as an artifact",
    )
