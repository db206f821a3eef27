"""Downloads of artifacts. A file may be a page from anywhere, so it must never act as a page of this server."""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Self
from urllib.parse import quote

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cplane.errors import ArtifactNotFound
from cplane.postgres.models import ArtifactRecord
from cplane.web.request import ApiRequest

MEDIA_TYPE = re.compile(r"[\w.+-]+/[\w.+-]+(?:; *[\w-]+=[\w.:+-]+)*", re.ASCII)

FILE_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
"""Valid names of artifacts."""

SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""Shown in a browser, the file runs no script, loads nothing, and has another origin than the API."""

OpenArtifact = tuple[ArtifactRecord, AsyncIterator[bytes]]


async def get_artifact(request: ApiRequest) -> Response:
    """Stream an artifact."""
    record_id, name = request.record_id(), str(request.path_params["name"])
    if not FILE_NAME.fullmatch(name):
        raise ArtifactNotFound(f"job {record_id} has no artifact named '{name}'")
    return await ArtifactResponse.open(
        request.plane.open_artifact(record_id, name), if_none_match=request.headers.get("if-none-match")
    )


class ArtifactResponse(StreamingResponse):
    """Streams a file, and closes it even if the client disconnects."""

    def __init__(
        self, chunks: AsyncIterator[bytes], headers: dict[str, str], media_type: str, opened: AsyncExitStack
    ) -> None:
        super().__init__(chunks, headers=headers, media_type=media_type)
        self._opened = opened

    @classmethod
    async def open(
        cls, opening: AbstractAsyncContextManager[OpenArtifact], if_none_match: str | None
    ) -> Self | Response:
        """Return the response for a file, or a 304 if the client has the current version."""
        async with AsyncExitStack() as stack:
            artifact, chunks = await stack.enter_async_context(opening)
            headers = _cache_headers(artifact)
            if if_none_match is not None and matches(if_none_match, headers["etag"]):
                return Response(status_code=304, headers=headers)
            media_type = (
                artifact.media_type if MEDIA_TYPE.fullmatch(artifact.media_type) else "application/octet-stream"
            )
            return cls(chunks, headers | _content_headers(artifact, media_type), media_type, stack.pop_all())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file; for HEAD, send its headers only."""
        async with self._opened:
            if scope["method"] == "HEAD":
                await Response(status_code=self.status_code, headers=dict(self.headers))(scope, receive, send)
            else:
                await super().__call__(scope, receive, send)


def matches(if_none_match: str, etag: str) -> bool:
    """Return whether an If-None-Match header includes the ETag."""
    held = [version.strip().removeprefix("W/") for version in if_none_match.split(",")]
    return "*" in held or etag in held


def _cache_headers(artifact: ArtifactRecord) -> dict[str, str]:
    # a later attempt may replace the file: the client revalidates each time, and gets a 304
    return {"etag": f'"{artifact.sha256}"', "cache-control": "private, no-cache"}


def _content_headers(artifact: ArtifactRecord, media_type: str) -> dict[str, str]:
    headers = {
        "content-length": str(artifact.size),
        "content-disposition": f'inline; filename="{quote(artifact.name)}"',
        "x-content-type-options": "nosniff",
    }
    if media_type != "application/pdf":  # browsers refuse to show a sandboxed PDF; their viewer is its own sandbox
        headers["content-security-policy"] = SANDBOX
    return headers
