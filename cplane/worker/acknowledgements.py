"""How the leases of attempts that have ended leave Redis, and what Redis keeps of their results."""

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from cplane.errors import ResultTooLarge
from cplane.jobs.result_size import too_large
from cplane.jobs.states import AttemptState, State
from cplane.redis.envelope import ErrorText, KeptResult, encode
from cplane.redis.events import BareEvent
from cplane.redis.keys import redis_name
from cplane.redis.messages import Ack, Disposition
from cplane.runtime.error_text import Error, describe
from cplane.runtime.text import storable
from cplane.worker.attempt import Attempt
from cplane.worker.outcome import Outcome

MAX_REASON_CHARS = 500
"""Of why an outcome was refused; the driver's text may quote the outcome itself."""

Serializer = Callable[[dict[str, Any]], bytes]

log = structlog.get_logger("cplane")


class Ended(msgspec.Struct, frozen=True):
    """An attempt and its outcome; `state` is that of its record then."""

    attempt: Attempt
    outcome: Outcome
    state: State
    refused: bool = False
    """The outcome says that the attempt's own was refused."""

    @property
    def size(self) -> int:
        """About how many bytes its outcome has."""
        outcome = self.outcome
        size = 0 if outcome.result_json is None else len(outcome.result_json)
        return size if outcome.error is None else size + len(outcome.error.message) + len(outcome.error.traceback)

    def as_refused(self, by: str, error: Exception) -> "Ended":
        """Return it with a final failure in place of an outcome that cannot be stored.

        Args:
            by: who refused it.
            error: why.
        """
        name, reason = self.attempt.job.name, storable(str(error).partition("\n")[0][:MAX_REASON_CHARS])
        self.attempt.log.error("outcome_refused", by=by, reason=reason)
        self.attempt.progress = None
        message = f"the outcome of '{name}' cannot be stored: {by} refused it: {reason}"
        return self.as_failed(Error("ResultNotSerializable", message))

    def as_failed(self, error: Error) -> "Ended":
        """Return it with a final failure in place of its outcome."""
        outcome = Outcome(state=State.FAILED, attempt_state=AttemptState.FAILED, error=error, failures=1)
        return Ended(self.attempt, outcome, State.FAILED, refused=True)


class Packed(msgspec.Struct, frozen=True):
    """An attempt that has ended, and the acknowledgement of its lease."""

    ended: Ended
    ack: Ack

    @property
    def size(self) -> int:
        """How many bytes of text it has."""
        return len(self.ack.text)

    @property
    def event(self) -> BareEvent:
        """What the waiters are told."""
        return self.ended.attempt.lease.id, self.ended.state, self.ended.attempt.number


class Acknowledgements:
    """Makes acknowledgements.

    Args:
        max_result_bytes: size of the largest result that is kept, bytes.
        serialize: how results are kept in Redis, if arq's settings say so.
    """

    def __init__(self, max_result_bytes: int, serialize: Serializer | None = None) -> None:
        self._max_result_bytes = max_result_bytes
        self._serialize = serialize

    def pack(self, ended: Ended, now: int) -> Packed:
        """Return the acknowledgement of an attempt. What cannot be kept fails this attempt, and no other.

        Args:
            ended: the attempt.
            now: this machine's clock, ms since 1970.
        """
        try:
            return Packed(ended, self._ack(ended, now))
        except Exception as error:
            return self._pack_failure(ended, error, now)

    def _pack_failure(self, ended: Ended, error: Exception, now: int) -> Packed:
        lease, name = ended.attempt.lease, ended.attempt.job.name
        if isinstance(error, ResultTooLarge):
            text = describe(error)
        else:
            text = Error("ResultNotSerializable", storable(f"what '{name}' returned cannot be kept: {error}"))
        log.warning("result_not_kept", record=lease.id, job=name, reason=text.message[:MAX_REASON_CHARS])
        failed = ended.as_failed(text)
        kept = ended.attempt.job.retention(State.FAILED)
        if kept.result_ms is None:
            return Packed(failed, Ack(lease, Disposition.DONE, keep_lease_ms=kept.lease_ms))
        result = msgspec.structs.replace(_kept_result(failed, now), a=(), k={})
        return Packed(failed, Ack(lease, Disposition.DONE, kept.result_ms, encode(result), kept.lease_ms))

    def _ack(self, ended: Ended, now: int) -> Ack:
        """Return how the lease leaves Redis, with the result if Redis keeps it."""
        attempt, outcome = ended.attempt, ended.outcome
        if ended.state is State.QUEUED:
            if outcome.attempt_state is AttemptState.RELEASED and not outcome.delay_s:
                return Ack.release(attempt.lease)
            payload = attempt.job.next_payload(attempt.envelope, outcome)
            return Ack(attempt.lease, Disposition.RETRY, int(outcome.delay_s * 1000), payload)
        kept = attempt.job.retention(ended.state)
        if kept.result_ms is None:
            return Ack(attempt.lease, Disposition.DONE, keep_lease_ms=kept.lease_ms)
        result = self._encode(ended, now)
        return Ack(attempt.lease, Disposition.DONE, kept.result_ms, result, kept.lease_ms)

    def _encode(self, ended: Ended, now: int) -> bytes:
        """Return what Redis keeps of a result. Raises ResultTooLarge, and what the serializer raises."""
        value, job, max_bytes = ended.outcome.value, ended.attempt.job.name, self._max_result_bytes
        if isinstance(value, str | bytes) and len(value) > max_bytes and self._serialize is None:
            raise too_large(job, len(value), max_bytes)
        result = _kept_result(ended, now)
        kept = encode(result) if self._serialize is None else self._serialize(msgspec.structs.asdict(result))
        if value is not None and (size := len(kept) - len(ended.attempt.lease.payload)) > max_bytes:
            raise too_large(job, size, max_bytes)
        return kept


def _kept_result(ended: Ended, now: int) -> KeptResult:
    attempt, outcome = ended.attempt, ended.outcome
    envelope: Any = attempt.envelope
    succeeded = outcome.state is State.SUCCEEDED
    value = outcome.value
    if outcome.result_json is not None and outcome.result_json != b"null":
        value = msgspec.json.decode(outcome.result_json)
    if not succeeded:
        error = outcome.error or Error("CancelledError", "it was cancelled")
        value = ErrorText(error.type, error.message, error.traceback).packed()
    return KeptResult(
        t=attempt.number,
        f=envelope.f,
        a=envelope.a,
        k=envelope.k,
        et=envelope.et,
        s=succeeded,
        r=value,
        st=attempt.began_ms,
        ft=now,
        q=redis_name(attempt.lease.queue, attempt.lease.priority),
        id=attempt.lease.id,
    )
