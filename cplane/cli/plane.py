"""The control plane of a command that reads or submits jobs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from cplane.errors import RecordNotFound

if TYPE_CHECKING:
    from cplane.plane.control_plane import ControlPlane


@asynccontextmanager
async def open_plane(imports: str | None = None) -> "AsyncGenerator[ControlPlane]":
    """Open a control plane with the settings of the environment, and log to stderr.

    Args:
        imports: modules that define jobs, comma-separated, instead of those of CPLANE_IMPORTS.
    """
    from cplane.logs import configure_logs
    from cplane.plane.control_plane import ControlPlane
    from cplane.settings import load_settings

    settings = load_settings(**({} if imports is None else {"imports": imports}))
    configure_logs(settings)
    async with ControlPlane(settings) as plane:
        yield plane


def read_id(text: str) -> UUID:
    """Parse an id that was typed.

    Raises:
        RecordNotFound: it is not a UUID.
    """
    try:
        return UUID(text)
    except ValueError:
        hint = "an id has 32 hexadecimal digits; `cplane jobs list` shows them"
        raise RecordNotFound(f"'{text}' is not the id of a job", hint=hint) from None
