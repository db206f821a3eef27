"""A job's file on its way to the client. It may be a page taken from anywhere: it must never act as a page of this server."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Self
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cplane.postgres.models import ArtifactRecord

MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:; *[\w-]+=[\w.:+-]+)*", re.ASCII)

FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
"""What can be the name of a file at all."""

SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Shown in a browser, the file runs no script, loads nothing, and is of another origin than the API."""

Opened = tuple[ArtifactRecord, AsyncIterator[bytes]]


class ArtifactResponse(StreamingResponse):
    """Streams a file and closes it, whether or not the client takes it all."""

    def __init__(
        self, chunks: AsyncIterator[bytes], headers: dict[str, str], media_type: str, opened: AsyncExitStack
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._opened = opened

    @classmethod
    async def open(cls, opening: AbstractAsyncContextManager[Opened], if_none_match: str | None) -> Self | Response:
        """The response for a file; 304 when the client has it already."""
        async with AsyncExitStack() as stack:
            artifact, chunks = await stack.enter_async_context(opening)
            headers = _validators(artifact)
            if if_none_match is not None and matches(if_none_match, headers["etag"]):
                return Response(status_code=304, headers=headers)
            media_type = (
                artifact.media_type if MEDIA_TYPE.fullmatch(artifact.media_type) else "application/octet-stream"
            )
            return cls(chunks, headers | _headers(artifact, media_type), media_type, stack.pop_all())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; for HEAD, only what would come before it."""
        async with self._opened:
            if scope["method"] == "HEAD":
                await Response(status_code=self.status_code, headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)


def matches(if_none_match: str, etag: str) -> bool:
    """Whether a client that holds these versions has this one."""
    held = [version.strip().removeprefix("W/") for version in if_none_match.split(",")]
    return "*" in held or etag in held


def _validators(artifact: ArtifactRecord) -> dict[str, str]:
    # a later attempt may replace the file: the client asks each time, and gets 304
    return {"etag": f'"{artifact.sha256}"', "cache-control": "private, no-cache"}


def _headers(artifact: ArtifactRecord, media_type: str) -> dict[str, str]:
    headers = {
        "content-length": str(artifact.size),
        "content-disposition": f'inline; filename="{quote(artifact.name)}"',
        "x-content-type-options": "nosniff",
    }
    if media_type != "application/pdf":  # browsers refuse to show a sandboxed PDF; their viewer is a sandbox of its own
        headers["content-security-policy"] = SANDBOX
    return headers
