"""The names of cplane's and arq's keys in Redis, and the lanes of a queue. docs/protocol.md lists all keys."""

from collections.abc import Sequence

from cplane.jobs.names import DEFAULT_QUEUE
from cplane.jobs.states import Priority

ARQ_QUEUE = "arq:queue"
"""arq's name of the default queue, and the prefix of the others."""

ARQ_RESULT_PREFIX = "arq:result:"
"""arq's prefix of kept results."""

ARQ_LEASE = b"1"
"""The value of a lease that a plain arq worker took."""


EPOCH = "cplane:epoch"
"""The counter by which a Redis that lost its data is detected."""


LANES = tuple(Priority)
"""The lanes of a queue, in the order of their KEYS in the scripts."""


LANE_INDEX = {priority: index for index, priority in enumerate(LANES, 1)}
"""The index of a lane in the KEYS of the scripts."""


LANE_ORDERS: tuple[tuple[Priority, ...], ...] = (
    (Priority.HIGH, Priority.NORMAL, Priority.LOW),
    (Priority.NORMAL, Priority.HIGH, Priority.LOW),
    (Priority.LOW, Priority.NORMAL, Priority.HIGH),
)
"""The orders in which a claim serves the lanes; see `lane_order`."""


def lane_order(claim_number: int) -> tuple[Priority, ...]:
    """Return the order in which a claim serves the lanes: no lane is starved.

    Every sixteenth claim serves the low lane first, every fourth the normal one, and the others the high one.
    """
    if claim_number % 16 == 15:
        return LANE_ORDERS[2]
    return LANE_ORDERS[1] if claim_number % 4 == 3 else LANE_ORDERS[0]


def redis_name(queue: str, priority: Priority = Priority.NORMAL) -> str:
    """Return the sorted set of a lane: arq's own name for the normal lane of the default queue."""
    name = ARQ_QUEUE if queue == DEFAULT_QUEUE else f"{ARQ_QUEUE}:{queue}"
    return name if priority is Priority.NORMAL else f"{name}@{priority}"


def queue_of(redis_queue: str) -> str:
    """Return the queue of a normal lane's sorted set."""
    return DEFAULT_QUEUE if redis_queue == ARQ_QUEUE else redis_queue.removeprefix(f"{ARQ_QUEUE}:")


def lane_of(redis_queue: str) -> tuple[str, Priority]:
    """Return the queue and the priority of a sorted set."""
    name, _, priority = redis_queue.partition("@")
    return queue_of(name), Priority(priority) if priority in set(Priority) else Priority.NORMAL


def lane_keys(queue: str, order: Sequence[Priority] = LANES) -> list[str]:
    """Return the sorted sets of a queue's lanes."""
    return [redis_name(queue, priority) for priority in order]


def wake_key(queue: str) -> str:
    """Return the list on which idle workers of a queue block."""
    return f"cplane:wake:{queue}"
