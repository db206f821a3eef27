"""The commands in docs/reference/http.md work unchanged, in their order."""

import asyncio
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.web.conftest import Api, FakeWorker

DOCS = Path(__file__).parents[2] / "docs" / "reference" / "http.md"
HERE = "http://127.0.0.1:8000"


async def test_the_example_of_a_problem_is_the_actual_response(api: "Api") -> None:
    response = await api.client.post("/api/v1/jobs", json={"job": "screenshot", "args": {"url": 7}})
    examples: list[str] = re.findall(r"^```json\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert json.loads(examples[1]) == response.json()


async def test_the_example_of_a_record_has_the_actual_members(api: "Api") -> None:
    examples: list[str] = re.findall(r"^```json\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    assert set(json.loads(examples[0])) == set(await api.submit())


def commands() -> list[str]:
    blocks: list[str] = re.findall(r"^```console\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.mark.skipif(shutil.which("curl") is None, reason="the commands are curl's")
async def test_every_command_returns_the_documented_status(
    api: "Api", fake_worker: "FakeWorker", tmp_path: Path
) -> None:
    shell = Shell(str(api.client.base_url), tmp_path)
    statuses: list[str] = []
    for command in commands():
        if "artifacts" in command:
            started = await fake_worker.start(shell.variables["ID"])
            await fake_worker.add_artifact(started, "screenshot.png", b"picture")
            await fake_worker.fail(started)
        if command.endswith('/cancel"'):
            await api.client.post(f"/api/v1/jobs/{shell.variables['ID']}/retry")
        statuses.append(await shell.run(command))

    submit, read = ["202", "202", "200", "202", "202"], ["200", "200", "200", "200"]
    change, sessions = ["200", "202", "200"], ["201", "200", "200", "204"]
    inspect, refused = ["200"] * 5, ["422"]
    assert [status for status in statuses if status] == [*submit, *read, *change, *sessions, *inspect, *refused]
    assert (tmp_path / "screenshot.png").read_bytes() == b"picture"


class Shell:
    """Runs commands one by one, and keeps the variables that they set."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url.rstrip("/")
        self._folder = folder
        self.variables: dict[str, str] = {}

    async def run(self, command: str) -> str:
        """Return the status that curl received; empty for a command that sets a variable."""
        command = command.replace(HERE, self._url)
        if assigned := re.match(r"(\w+)=", command):
            self.variables[assigned[1]] = await self._output(f'{command}; echo "${assigned[1]}"')
            return ""
        return (await self._output(command.replace("curl", "curl -sS -w '\\n%{http_code}'", 1))).rpartition("\n")[2]

    async def _output(self, command: str) -> str:
        process = await asyncio.create_subprocess_shell(
            command,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self._folder,
            env=self._environment(),
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, f"{command}: {errors.decode()}"
        return output.decode().rstrip("\n")

    def _environment(self) -> dict[str, str]:
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", **self.variables}
