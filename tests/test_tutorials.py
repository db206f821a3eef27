"""The programs of the tutorial are run as they stand there."""

import asyncio
import json
import re
from pathlib import Path

import pytest

from cplane.settings import CplaneSettings
from tests.test_readme import PROGRAMS as SHOWN
from tests.test_readme import environment, run, site, web, worker
from tests.workers import DEADLINE_S

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial"
FIRST_JOB = (TUTORIAL / "first-job.md").read_text()
FIRST_BROWSER_JOB = (TUTORIAL / "first-browser-job.md").read_text()
PROGRAMS: dict[str, str] = dict(re.findall(r"```python\n# (\S+)\n(.*?)```", FIRST_JOB + FIRST_BROWSER_JOB, re.DOTALL))
DIVIDE: str = re.findall(r"```python\n(@job\n.*?)```", FIRST_JOB, re.DOTALL)[0]


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "hello.py").write_text(PROGRAMS["hello.py"].replace("async def main", f"{DIVIDE}\nasync def main"))
    (tmp_path / "pages.py").write_text(PROGRAMS["pages.py"])
    return tmp_path


def test_its_hello_world_is_the_readmes() -> None:
    assert PROGRAMS["hello.py"] == SHOWN["hello.py"]


async def test_its_first_jobs_do_what_it_says(settings: CplaneSettings, programs: Path) -> None:
    env = environment(settings)
    async with worker(env, programs):
        assert await run("hello.py", env=env, cwd=programs) == "3\n"
        assert await run("-m", "cplane", "submit", "add", "x=3", "y=4", env=env, cwd=programs) == "7\n"
        for command in (("divide", "x=1", "y=0"), ("add", "x=one", "y=2")):
            with pytest.raises(AssertionError) as refused:
                await run("-m", "cplane", "submit", *command, env=env, cwd=programs)
            said = str(refused.value)
            assert any(sentence in said for sentence in re.findall(r"^error: (.*)$", FIRST_JOB, re.MULTILINE)), said


async def test_its_browser_job_keeps_a_picture(settings: CplaneSettings, programs: Path) -> None:
    env = environment(settings)
    async with worker(env, programs), site() as url:
        printed = await run("-m", "cplane", "submit", "headline", f"url={url}", "--save", ".", env=env, cwd=programs)
    assert printed == '"Good morning"\n'
    assert (programs / "headline.png").read_bytes().startswith(b"\x89PNG")


async def test_its_curl_command_returns_the_headline(settings: CplaneSettings, programs: Path) -> None:
    (command,) = re.findall(r"^\$ (curl .*)$", FIRST_BROWSER_JOB, re.MULTILINE)
    env = environment(settings)
    async with worker(env, programs), web(env, programs) as port:
        curl = await asyncio.create_subprocess_shell(
            command.replace("localhost:8000", f"127.0.0.1:{port}"), stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(DEADLINE_S * 2):
            response, _ = await curl.communicate()
    record = json.loads(response)
    assert (record["job"], record["state"]) == ("headline", "succeeded"), record
    assert "cplane" in record["result"]
