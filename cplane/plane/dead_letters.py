"""Dead letters as an operator sees them: list, requeue, drop."""

from cplane.errors import InvalidTransition, RecordNotFound
from cplane.redis.dead_letters import DeadLetter, DeadLetterStream
from cplane.redis.keys import lane_of
from cplane.redis.messages import EnqueueRequest
from cplane.redis.queue import Queue


class DeadLetters:
    """What could not be run, until somebody decides. An open plane has one: `plane.dead_letters`."""

    def __init__(self, stream: DeadLetterStream, queue: Queue) -> None:
        self._stream = stream
        self._queue = queue

    async def newest(self, limit: int = 100) -> list[DeadLetter]:
        """Return at most `limit` dead letters, newest first.

        Raises:
            QueueUnavailable: Redis did not respond.
        """
        return await self._stream.newest(limit)

    async def count(self) -> int:
        """Return how many there are."""
        return await self._stream.count()

    async def drop(self, job_id: str) -> DeadLetter:
        """Delete every dead letter of an id, and return the newest of them.

        Raises:
            RecordNotFound: there is none.
        """
        dropped = await self._stream.drop(job_id)
        if dropped is None:
            raise _not_found(job_id)
        return dropped

    async def requeue(self, job_id: str) -> None:
        """Put the newest dead letter of an id back into its queue, due at once.

        Raises:
            RecordNotFound: there is none.
            InvalidTransition: its payload is gone.
        """
        letter = await self._stream.find(job_id)
        if letter is None:
            raise _not_found(job_id)
        if not letter.payload:
            raise InvalidTransition(
                "its payload is gone: nothing is left to run", hint="`cplane dead-letters drop ID` deletes it"
            )
        queue, priority = lane_of(letter.queue)
        await self._queue.enqueue([EnqueueRequest(queue, job_id, letter.payload, 0, priority)])
        await self._stream.drop(job_id)


def _not_found(job_id: str) -> RecordNotFound:
    return RecordNotFound(f"there is no dead letter with the id '{job_id}'", hint="`cplane dead-letters` lists them")
