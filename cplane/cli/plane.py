"""The control plane of a command that asks or submits."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from cplane.errors import RecordNotFound

if TYPE_CHECKING:
    from cplane.plane.control_plane import ControlPlane


@asynccontextmanager
async def open_plane(imports: str | None = None) -> "AsyncGenerator[ControlPlane]":
    """A plane from the environment; `imports` wins over CPLANE_IMPORTS. What it logs goes to stderr."""
    from cplane.logs import configure_logs
    from cplane.plane.control_plane import ControlPlane
    from cplane.settings import load_settings

    settings = load_settings(**({} if imports is None else {"imports": imports}))
    configure_logs(settings)
    async with ControlPlane(settings) as plane:
        yield plane


def read_id(text: str) -> UUID:
    """The id a person typed.

    Raises:
        RecordNotFound: no id looks like that.
    """
    try:
        return UUID(text)
    except ValueError:
        hint = "an id has 32 hexadecimal digits; `cplane jobs list` shows them"
        raise RecordNotFound(f"'{text}' is not the id of a job", hint=hint) from None
