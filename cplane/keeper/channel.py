"""What a keeper and its worker process say to each other, apart from the manifest."""

import msgspec

from cplane.keeper.servers import Servers

VARIABLE = "CPLANE_KEEPER_FDS"
"""The environment variable that gives a worker its file descriptors: the manifest, the traces, and the channel."""

ALONE_VARIABLE = "CPLANE_KEEPER_ALONE"
"""The environment variable that names the queue whose quarantine a worker serves, one job at a time, until it is empty."""


class Hello(msgspec.Struct, frozen=True):
    """What a worker tells its keeper when it begins to serve, as one line of JSON."""

    name: str
    """The worker's name, as records show it."""
    servers: Servers
    queues: tuple[str, ...]
    """The queues that it serves."""
    prefix: str
    """What the tokens of its leases begin with."""
    drain_s: float
    memory_mb: int = 0
    """What it uses before its first job, in MiB; 0: that is not known."""


class Limits(msgspec.Struct, frozen=True):
    """When a worker process is replaced. 0: never."""

    jobs: int = 0
    """After so many jobs."""
    memory_mb: int = 0
    """When it uses more MiB."""
