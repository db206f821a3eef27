"""Cooldowns: a host that has had enough is not visited for a while, by any worker."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cplane.errors import QueueUnavailable
from cplane.jobs import retry_after
from cplane.jobs.per_host import host_among
from cplane.redis.limiter import Limiter

if TYPE_CHECKING:
    from cplane.worker.attempt import Attempt


@dataclass(frozen=True, slots=True)
class Cooldowns:
    """Starts cooldowns for the hosts of attempts."""

    limiter: Limiter
    respect_retry_after: bool
    """Whether built-in jobs cool down a host that responds with Retry-After (CPLANE_RESPECT_RETRY_AFTER)."""

    def allow(self, limit_keys: tuple[str, ...]) -> None:
        """Have `retry_after.check` raise in this task, if the job has a host and the settings want it."""
        if host_among(limit_keys):
            retry_after.respected.set(self.respect_retry_after)

    async def start(self, attempt: "Attempt", seconds: float) -> bool:
        """Cool down the host of an attempt, for all workers. Returns False if it has none, or Redis did not respond."""
        host = host_among(attempt.lease.limit_keys)
        if host is None:
            return False
        try:
            lasts_s = await self.limiter.cool_down(host, seconds)
        except QueueUnavailable as error:
            attempt.log.warning("cooldown_failed", host=host, reason=str(error))
            return False
        attempt.log.warning("cooldown_started", host=host, lasts_s=lasts_s)
        return True
