"""A plain arq worker that serves the same queue: `python -m arq tests.chaos.plain_arq.Settings`.

It does not use cplane.
"""

import os
from typing import Any, ClassVar

import msgspec
from arq.connections import RedisSettings


async def chaos_transient(_: dict[Any, Any], x: int) -> int:
    """The same job as in `tests.chaos.jobs`: either worker may run it."""
    return x + 1


class Settings:
    """The settings of the arq worker."""

    functions: ClassVar = [chaos_transient]
    redis_settings = RedisSettings.from_dsn(os.environ.get("CPLANE_REDIS_URL", "redis://localhost"))
    job_serializer = msgspec.msgpack.encode
    job_deserializer = msgspec.msgpack.decode
    poll_delay = 0.1
    max_jobs = 10
