"""A job whose page takes more than it may fails for good, at once, and says why."""

import pytest

from cplane import ControlPlane, CplaneSettings, JobFailed
from cplane.tasks import content
from tests.workers import DEADLINE_S, running

ALLOCATING = "<script>all = []; setInterval(() => all.push(new Uint8Array(8e6).fill(1)), 20)</script>"


async def test_a_page_above_its_memory_limit_fails_its_job_alone(settings: CplaneSettings, plane: ControlPlane) -> None:
    limited = settings.model_copy(update={"browser_page_memory_mb": 200})
    async with running(limited, pages=True):
        offender = await content.submit(html=ALLOCATING, wait_for_timeout=60_000)
        innocents = [await content.submit(html=f"<title>{number}</title>") for number in range(3)]
        results = [await innocent.result(timeout=DEADLINE_S) for innocent in innocents]
        with pytest.raises(
            JobFailed, match=r"PageTooLarge: .* a page may use 200 \(CPLANE_BROWSER_PAGE_MEMORY_MB sets"
        ):
            await offender.result(timeout=DEADLINE_S)
    assert [result.title for result in results] == ["0", "1", "2"]
    assert len(await plane.attempts(offender.id)) == 1
