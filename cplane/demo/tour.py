"""The tour: every visit submitted over HTTP, awaited, and its files written down."""

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
from cplane.runtime.cancellation import end

AT_ONCE = 16
"""Requests under way at the same time."""


@dataclass(frozen=True, slots=True)
class Souvenir:
    """What came back from one visit: `file` is what was written, None when the job left nothing."""

    visit: Visit
    record: dict[str, Any]
    file: Path | None
    size: int

    @property
    def succeeded(self) -> bool:
        """Whether the job did."""
        return bool(self.record["state"] == "succeeded")

    @property
    def took_s(self) -> float:
        """From the start of the last attempt to its end, by the record."""
        started, finished = self.record["started_at"], self.record["finished_at"]
        if started is None or finished is None:
            return 0.0
        return (datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds()

    @property
    def excerpt(self) -> str:
        """What it says, in a few words."""
        if not self.succeeded:
            error = self.record["error"] or {"type": self.record["state"], "message": ""}
            return f"{error['type']}: {error['message']}"
        return excerpt(self.visit.job, self.record["result"])


async def tour(api: Api, visits: Sequence[Visit], folder: Path) -> AsyncIterator[Souvenir]:
    """Submit every visit, then yield each as it is done, its file written into `folder`."""
    gate = asyncio.Semaphore(AT_ONCE)
    tasks = [asyncio.create_task(_go(api, visit, folder, gate), name=f"{visit.job} {visit.page}") for visit in visits]
    try:
        for done in asyncio.as_completed(tasks):
            yield await done
    finally:
        await end(tasks)


async def _go(api: Api, visit: Visit, folder: Path, gate: asyncio.Semaphore) -> Souvenir:
    async with gate:
        record = await api.submit(visit.job, visit.args)
    record = await api.finished(record["id"])
    if record["state"] != "succeeded":
        return Souvenir(visit, record, None, 0)
    async with gate:
        suffix, data = await _keepsake(api, visit, record)
    file = folder / f"{slug(visit)}{suffix}"
    await asyncio.to_thread(file.write_bytes, data)
    return Souvenir(visit, record, file, len(data))


async def _keepsake(api: Api, visit: Visit, record: dict[str, Any]) -> tuple[str, bytes]:
    """The file the job left, else its result as JSON."""
    for artifact in record["artifacts"]:
        return Path(artifact["name"]).suffix, await api.file(artifact["url"])
    text = json.dumps(record["result"], indent=2, ensure_ascii=False)
    return f".{visit.job}.json", text.encode()


def slug(visit: Visit) -> str:
    """The name of a visit's file, without its suffix."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", visit.page).strip("-.")[:120] or "page"


def excerpt(job: str, result: dict[str, Any]) -> str:
    """A result in a few words."""
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
