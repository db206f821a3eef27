"""The tour: submits every visit over HTTP, waits for it, and writes its file."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from cplane.demo.api import Api
from cplane.demo.visits import Visit
from cplane.runtime.cancellation import cancel_all

MAX_CONCURRENT_REQUESTS = 16


@dataclass(frozen=True, slots=True)
class VisitResult:
    """The result of one visit. `file` is the file that was written; None if the job failed."""

    visit: Visit
    record: dict[str, Any]
    file: Path | None
    size: int

    @property
    def succeeded(self) -> bool:
        """Whether the job succeeded."""
        return bool(self.record["state"] == "succeeded")

    @property
    def took_s(self) -> float:
        """Duration of the last attempt in seconds, from the record."""
        started, finished = self.record["started_at"], self.record["finished_at"]
        if started is None or finished is None:
            return 0.0
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()

    @property
    def excerpt(self) -> str:
        """A short summary of the result or the error."""
        if not self.succeeded:
            error = self.record["error"] or {"type": self.record["state"], "message": ""}
            return f"{error['type']}: {error['message']}"
        return excerpt(self.visit.job, self.record["result"])


async def tour(api: Api, visits: Sequence[Visit], folder: Path) -> AsyncIterator[VisitResult]:
    """Submit all visits concurrently and write their files.

    Args:
        api: the HTTP API.
        visits: the jobs to submit.
        folder: folder for the files; it must exist.

    Yields:
        Each result once its file is written, in order of completion.
    """
    requests = asyncio.Semaphore(MAX_CONCURRENT_REQUESTS)
    tasks = [
        asyncio.create_task(_run(api, visit, folder, requests), name=f"{visit.job} {visit.page}") for visit in visits
    ]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        await cancel_all(tasks)


async def _run(api: Api, visit: Visit, folder: Path, requests: asyncio.Semaphore) -> VisitResult:
    async with requests:
        record = await api.submit(visit.job, visit.args)
    record = await api.wait(record["id"])
    if record["state"] != "succeeded":
        return VisitResult(visit, record, None, 0)
    async with requests:
        suffix, data = await _fetch_file(api, visit, record)
    file = folder / f"{slug(visit)}{suffix}"
    await asyncio.to_thread(file.write_bytes, data)
    return VisitResult(visit, record, file, len(data))


async def _fetch_file(api: Api, visit: Visit, record: dict[str, Any]) -> tuple[str, bytes]:
    """Return the suffix and content of the first artifact, or else of the result as JSON."""
    for artifact in record["artifacts"]:
        return Path(artifact["name"]).suffix, await api.file(artifact["url"])
    text = json.dumps(record["result"], indent=2, ensure_ascii=False)
    return f".{visit.job}.json", text.encode()


def slug(visit: Visit) -> str:
    """Return the file name for a visit, without a suffix."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", visit.page).strip("-.")[:120] or "page"


def excerpt(job: str, result: dict[str, Any]) -> str:
    """Return a short summary of a result."""
    match job:
        case "scrape":
            columns = [[element["text"] for element in found["results"]] for found in result["elements"]]
            first = " · ".join(column[0] for column in columns if column)
            return f"{sum(map(len, columns))} elements: {first}"
        case "links":
            return (
                f"{len(result['links'])} links: {', '.join(link['text'] or link['href'] for link in result['links'])}"
            )
        case "content":
            return f"{len(result['html'] or '')} characters: {result['title']}"
        case _:
            return str(result["title"])
