"""The names of cplane's and arq's keys in Redis, and the lanes of a queue."""

from collections.abc import Sequence

from arq.constants import default_queue_name

from cplane.jobs.options import DEFAULT_QUEUE
from cplane.jobs.states import Priority

ARQ_LEASE = b"1"
"""What a plain arq worker's lease says."""


EPOCH = "cplane:epoch"


LANES = tuple(Priority)


LANE = {priority: number for number, priority in enumerate(LANES, 1)}
"""The number under which the scripts know a lane."""


ORDERS: tuple[tuple[Priority, ...], ...] = (
    (Priority.HIGH, Priority.NORMAL, Priority.LOW),
    (Priority.NORMAL, Priority.HIGH, Priority.LOW),
    (Priority.LOW, Priority.NORMAL, Priority.HIGH),
)
"""The orders in which a claim serves the lanes; see `order_of`."""


def order_of(claim: int) -> tuple[Priority, ...]:
    """Every sixteenth claim serves the low lane first, every fourth the normal one, the others the high one: none starves."""
    if claim % 16 == 15:
        return ORDERS[2]
    return ORDERS[1] if claim % 4 == 3 else ORDERS[0]


def redis_name(queue: str, priority: Priority = Priority.NORMAL) -> str:
    """The sorted set of a queue's lane: arq's own name for the normal lane of the default queue."""
    name = default_queue_name if queue == DEFAULT_QUEUE else f"{default_queue_name}:{queue}"
    return name if priority is Priority.NORMAL else f"{name}@{priority}"


def queue_of(redis_queue: str) -> str:
    """The queue of a sorted set."""
    return DEFAULT_QUEUE if redis_queue == default_queue_name else redis_queue.removeprefix(f"{default_queue_name}:")


def lane_of(redis_queue: str) -> tuple[str, Priority]:
    """The queue and the priority of a sorted set."""
    name, _, priority = redis_queue.partition("@")
    return queue_of(name), Priority(priority) if priority in set(Priority) else Priority.NORMAL


def lane_keys(queue: str, order: Sequence[Priority] = LANES) -> list[str]:
    """Return the sorted sets of a queue's lanes."""
    return [redis_name(queue, priority) for priority in order]


def wake_key(queue: str) -> str:
    """The list on which workers of a queue sleep."""
    return f"cplane:wake:{queue}"
