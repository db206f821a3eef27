"""Public path of the payload format of jobs in Redis: clients of arq are given `cplane.envelope.serialize`."""

from cplane.redis.envelope import deserialize, serialize

__all__ = ["deserialize", "serialize"]
