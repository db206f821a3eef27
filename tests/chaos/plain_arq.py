"""A worker of arq itself, as it would stand beside ours: `python -m arq tests.chaos.plain_arq.Settings`. It knows nothing of cplane."""

import os
from typing import Any, ClassVar

import msgspec
from arq.connections import RedisSettings


async def chaos_transient(_: dict[Any, Any], x: int) -> int:
    """The same job as ours of this name: whoever claims it may do it."""
    return x + 1


class Settings:
    """What arq reads."""

    functions: ClassVar = [chaos_transient]
    redis_settings = RedisSettings.from_dsn(os.environ.get("CPLANE_REDIS_URL", "redis://localhost"))
    job_serializer = msgspec.msgpack.encode
    job_deserializer = msgspec.msgpack.decode
    poll_delay = 0.1
    max_jobs = 10
