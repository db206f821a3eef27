"""A client of the HTTP API."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx2

from cplane.errors import InfrastructureError

LONG_POLL_S = 30
"""How long one request waits for a job before the next request is sent."""


class Api:
    """Submits jobs, waits for them and downloads their files.

    Example:
        async with Api.open(url, key) as api:
            record = await api.submit("screenshot", {"url": "https://example.com"})
            record = await api.wait(record["id"])
    """

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, key: str | None = None) -> "AsyncGenerator[Self]":
        """Open a client.

        Args:
            url: base URL of the API.
            key: one of CPLANE_API_KEYS; None: no authentication.
        """
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=LONG_POLL_S + 15, limits=limits) as client:
            yield cls(client)

    async def submit(self, job: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Submit a job with POST /api/v1/jobs, and return its record.

        Raises:
            InfrastructureError: the API rejected the request or did not respond.
        """
        return await self._json("POST", "/api/v1/jobs", json={"job": job, "args": dict(args)})

    async def wait(self, record_id: str) -> dict[str, Any]:
        """Wait until a record is final with GET /api/v1/jobs/{id}?wait=30, and return it.

        Raises:
            InfrastructureError: the API rejected the request or did not respond.
        """
        while True:
            record = await self._json("GET", f"/api/v1/jobs/{record_id}", params={"wait": LONG_POLL_S})
            if record["state"] in {"succeeded", "failed", "cancelled"}:
                return record

    async def file(self, url: str) -> bytes:
        """Download a file of a record from the `url` that is in the record.

        Raises:
            InfrastructureError: the API rejected the request or did not respond.
        """
        return (await self._request("GET", url)).content

    async def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        body: dict[str, Any] = (await self._request(method, path, **request)).json()
        return body

    async def _request(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            response = await self._client.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise InfrastructureError(
                f"the API at {self._client.base_url} did not respond: {error or type(error).__name__}"
            ) from error
        if response.is_error:
            problem = _problem(response)
            raise InfrastructureError(f"the API rejected {method} {path}: {problem}")
        return response


def _problem(response: httpx2.Response) -> str:
    """Return the detail of a problem+json response."""
    try:
        problem: dict[str, Any] = response.json()
    except ValueError:
        return f"{response.status_code} {response.reason_phrase}"
    return str(problem.get("detail") or problem.get("title") or response.status_code)
