"""cplane: a Celery-style task framework built on asyncio, made for browser jobs.

    from cplane import ControlPlane, job

Public names are imported on first use, so that `import cplane` and `cplane --help` are fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cplane.browser import BrowserPool as BrowserPool
    from cplane.browser import PageOptions as PageOptions
    from cplane.errors import CplaneError as CplaneError
    from cplane.errors import EgressBlocked as EgressBlocked
    from cplane.errors import HostUnreachable as HostUnreachable
    from cplane.errors import JobCancelled as JobCancelled
    from cplane.errors import JobFailed as JobFailed
    from cplane.errors import JobTimeout as JobTimeout
    from cplane.errors import Retry as Retry
    from cplane.errors import TooManyRequests as TooManyRequests
    from cplane.jobs import retry_after as retry_after
    from cplane.jobs.context import Artifact as Artifact
    from cplane.jobs.context import Context as Context
    from cplane.jobs.decorator import job as job
    from cplane.jobs.definition import Job as Job
    from cplane.jobs.handle import Handle as Handle
    from cplane.jobs.per_host import PerHost as PerHost
    from cplane.jobs.retry import RetryPolicy as RetryPolicy
    from cplane.jobs.states import State as State
    from cplane.plane.control_plane import ControlPlane as ControlPlane
    from cplane.settings import CplaneSettings as CplaneSettings

__version__ = "0.1.0"

_MODULES = {
    "Artifact": "cplane.jobs.context",
    "BrowserPool": "cplane.browser",
    "Context": "cplane.jobs.context",
    "ControlPlane": "cplane.plane.control_plane",
    "CplaneError": "cplane.errors",
    "CplaneSettings": "cplane.settings",
    "EgressBlocked": "cplane.errors",
    "Handle": "cplane.jobs.handle",
    "HostUnreachable": "cplane.errors",
    "Job": "cplane.jobs.definition",
    "JobCancelled": "cplane.errors",
    "JobFailed": "cplane.errors",
    "JobTimeout": "cplane.errors",
    "PageOptions": "cplane.browser",
    "PerHost": "cplane.jobs.per_host",
    "Retry": "cplane.errors",
    "RetryPolicy": "cplane.jobs.retry",
    "State": "cplane.jobs.states",
    "TooManyRequests": "cplane.errors",
    "job": "cplane.jobs.decorator",
    "retry_after": "cplane.jobs",
}

__all__ = [
    "Artifact",
    "BrowserPool",
    "Context",
    "ControlPlane",
    "CplaneError",
    "CplaneSettings",
    "EgressBlocked",
    "Handle",
    "HostUnreachable",
    "Job",
    "JobCancelled",
    "JobFailed",
    "JobTimeout",
    "PageOptions",
    "PerHost",
    "Retry",
    "RetryPolicy",
    "State",
    "TooManyRequests",
    "job",
    "retry_after",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'cplane' has no attribute '{name}'")
    module = _MODULES[name]
    value = import_module(f"{module}.{name}") if name == "retry_after" else getattr(import_module(module), name)
    globals()[name] = value
    return value
