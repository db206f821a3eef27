"""The worker: claims jobs, runs them, records their outcomes. `arq cplane.worker.Settings` runs one."""

from cplane.worker.worker import Settings, Worker

__all__ = ["Settings", "Worker"]
