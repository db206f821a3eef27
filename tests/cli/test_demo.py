import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Cplane, Start


async def test_the_demo_saves_the_results_of_all_jobs(cplane: "Cplane", folder: Path) -> None:
    ended = await cplane("demo")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("succeeded") == 36
    assert "cplane dev" in ended.stderr
    files = {file.name: file for file in (folder / "cplane-demo").iterdir()}
    assert len(files) == 36
    assert files["greenhouse.png"].read_bytes().startswith(b"\x89PNG")
    assert files["catalogue-5.pdf"].read_bytes().startswith(b"%PDF")
    scraped = json.loads(files["catalogue-1.scrape.json"].read_text())
    assert [element["text"] for element in scraped["elements"][0]["results"]][:2] == [
        "Bird's Nest Fern",
        "Swiss Cheese Plant",
    ]
    drawn = json.loads(files["greenhouse.content.json"].read_text())
    assert "water today" in drawn["html"], "what the script of the page drew"
    assert not (folder / ".cplane" / "stack.json").exists()


async def test_a_running_dev_is_used(start: "Start", cplane: "Cplane", folder: Path) -> None:
    async with start("dev", "--port", "0") as dev:
        await dev.until("Ctrl-C")
        api_url = json.loads((folder / ".cplane" / "stack.json").read_text())["api_url"]
        ended = await cplane("demo", api_url)
        assert (await dev.stop()).code == 0
    assert ended.code == 0, ended.stderr
    assert "using the running cplane dev" in ended.stderr
    assert len(list((folder / "cplane-demo").iterdir())) == 3


async def test_a_page_that_cannot_be_loaded_exits_1_and_is_named(cplane: "Cplane", addresses: dict[str, str]) -> None:
    ended = await cplane("demo", "http://127.0.0.1:9/", **addresses)
    assert ended.code == 1
    assert "✗ screenshot 127.0.0.1:9" in ended.stderr
    assert "ERR_" in ended.stderr


async def test_keep_runs_until_stopped(start: "Start", addresses: dict[str, str]) -> None:
    async with start("demo", "--keep", "http://127.0.0.1:9/", **addresses) as demo:
        await demo.until("still running: API")
        ended = await demo.stop()
    assert ended.code == 1
