"""Imports the jobs of an application for a command."""

import traceback
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cplane.errors import CplaneError, InvalidSettings

if TYPE_CHECKING:
    from cplane.jobs.registry import Registry


def import_jobs(modules: Iterable[str]) -> "Registry":
    """Return the registry with the built-in jobs and those of `modules`.

    Raises:
        InvalidJob: a decorator in one of them is invalid.
        InvalidSettings: a module cannot be found, or raises when it is imported; the hint says where.
    """
    from cplane.jobs.registry import load_jobs

    modules = list(modules)
    try:
        return load_jobs(modules)
    except CplaneError:
        raise
    except SyntaxError as error:
        raise InvalidSettings(f"{error.filename}, line {error.lineno}: {error.msg}") from error
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InvalidSettings(
            f"a module of {', '.join(modules)} cannot be imported: {type(error).__name__}: {error}",
            hint=f"raised in {last.filename}, line {last.lineno}",
        ) from error
