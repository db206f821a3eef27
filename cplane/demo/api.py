"""cplane's HTTP API, as any client uses it."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx2

from cplane.errors import InfrastructureError

WAIT_S = 30
"""How long one request waits for a job; then it is asked again."""


class Api:
    """`async with Api.open(url, key) as api:` submits jobs, waits for them and fetches their files."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, key: str | None = None) -> "AsyncGenerator[Self]":
        """Talk to the API at `url`; `key` is one of CPLANE_API_KEYS."""
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=50)
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=WAIT_S + 15, limits=limits) as client:
            yield cls(client)

    async def submit(self, job: str, args: Mapping[str, Any]) -> dict[str, Any]:
        """POST /api/v1/jobs: the record of a new job.

        Raises:
            InfrastructureError: the API refused, or did not answer.
        """
        return await self._json("POST", "/api/v1/jobs", json={"job": job, "args": dict(args)})

    async def finished(self, record_id: str) -> dict[str, Any]:
        """GET /api/v1/jobs/{id}?wait=30, until the record is final.

        Raises:
            InfrastructureError: the API refused, or did not answer.
        """
        while True:
            record = await self._json("GET", f"/api/v1/jobs/{record_id}", params={"wait": WAIT_S})
            if record["state"] in {"succeeded", "failed", "cancelled"}:
                return record

    async def file(self, url: str) -> bytes:
        """A file of a record, from the `url` the record names.

        Raises:
            InfrastructureError: the API refused, or did not answer.
        """
        return (await self._answer("GET", url)).content

    async def _json(self, method: str, path: str, **request: Any) -> dict[str, Any]:
        answer: dict[str, Any] = (await self._answer(method, path, **request)).json()
        return answer

    async def _answer(self, method: str, path: str, **request: Any) -> httpx2.Response:
        try:
            answer = await self._client.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise InfrastructureError(
                f"the API at {self._client.base_url} did not answer: {error or type(error).__name__}"
            ) from error
        if answer.is_error:
            problem = _problem(answer)
            raise InfrastructureError(f"the API refused {method} {path}: {problem}")
        return answer


def _problem(answer: httpx2.Response) -> str:
    """What problem+json says."""
    try:
        said: dict[str, Any] = answer.json()
    except ValueError:
        return f"{answer.status_code} {answer.reason_phrase}"
    return str(said.get("detail") or said.get("title") or answer.status_code)
