"""The payload format of jobs in Redis, by its public path: `cplane.envelope.serialize` goes to arq's clients."""

from cplane.redis.envelope import deserialize, serialize

__all__ = ["deserialize", "serialize"]
