"""cplane: a Celery-style task framework built natively on asyncio, whose main work is browser jobs.

    from cplane import ControlPlane, job

Names load when first used, so that `import cplane` and `cplane --help` cost nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cplane.browser import BrowserPool as BrowserPool
    from cplane.browser import PageOptions as PageOptions
    from cplane.context import Artifact as Artifact
    from cplane.context import Context as Context
    from cplane.errors import CplaneError as CplaneError
    from cplane.errors import EgressBlocked as EgressBlocked
    from cplane.errors import HostUnreachable as HostUnreachable
    from cplane.errors import JobCancelled as JobCancelled
    from cplane.errors import JobFailed as JobFailed
    from cplane.errors import JobTimeout as JobTimeout
    from cplane.errors import Retry as Retry
    from cplane.errors import TooManyRequests as TooManyRequests
    from cplane.handle import Handle as Handle
    from cplane.jobs import Job as Job
    from cplane.jobs import job as job
    from cplane.plane import ControlPlane as ControlPlane
    from cplane.politeness import PerHost as PerHost
    from cplane.retry import RetryPolicy as RetryPolicy
    from cplane.settings import CplaneSettings as CplaneSettings
    from cplane.states import State as State

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "cplane.context",
    "BrowserPool": "cplane.browser",
    "Context": "cplane.context",
    "ControlPlane": "cplane.plane",
    "CplaneError": "cplane.errors",
    "CplaneSettings": "cplane.settings",
    "EgressBlocked": "cplane.errors",
    "Handle": "cplane.handle",
    "HostUnreachable": "cplane.errors",
    "Job": "cplane.jobs",
    "JobCancelled": "cplane.errors",
    "JobFailed": "cplane.errors",
    "JobTimeout": "cplane.errors",
    "PageOptions": "cplane.browser",
    "PerHost": "cplane.politeness",
    "Retry": "cplane.errors",
    "RetryPolicy": "cplane.retry",
    "State": "cplane.states",
    "TooManyRequests": "cplane.errors",
    "job": "cplane.jobs",
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
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cplane' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
