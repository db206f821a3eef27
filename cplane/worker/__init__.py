"""The worker: claims jobs, runs them, records their outcomes. `arq cplane.worker.Settings` runs one.

Its names are imported on first use: the processes of a worker need little of it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cplane.worker.worker import Settings as Settings
    from cplane.worker.worker import Worker as Worker

__all__ = ["Settings", "Worker"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cplane.worker' has no attribute '{name}'")
    from cplane.worker import worker  # noqa: PLC0415

    return getattr(worker, name)
