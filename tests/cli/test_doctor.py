import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.cli.conftest import Cplane


async def test_all_checks_pass(cplane: "Cplane", addresses: dict[str, str]) -> None:
    ended = await cplane("doctor", "--json", **addresses)
    report = json.loads(ended.stdout)
    verdicts = {check["name"]: check["verdict"] for check in report["checks"]}
    assert (ended.code, report["healthy"]) == (0, True), verdicts
    assert list(verdicts) == ["settings", "postgres", "tables", "redis", "sessions", "jobs", "artifacts", "browser"]
    assert {"python", "cplane", "arq", "redis", "playwright"} <= report["versions"].keys()
    browser = detail(report, "browser")
    assert "Chromium" in browser
    assert "sandbox o" in browser


async def test_failed_checks_are_named_and_exit_1(
    cplane: "Cplane", addresses: dict[str, str], tmp_path: "Path"
) -> None:
    addresses["CPLANE_DATABASE_URL"] = f"postgresql://u:hunter2@/d?host={tmp_path}"
    addresses["CPLANE_IMPORTS"] = "nowhere"
    addresses["CPLANE_BROWSER_EXECUTABLE"] = str(tmp_path / "chrome")
    ended = await cplane("doctor", "--json", **addresses)
    report = json.loads(ended.stdout)
    failed = {check["name"] for check in report["checks"] if check["verdict"] == "failed"}
    assert (ended.code, report["healthy"]) == (1, False)
    assert failed == {"postgres", "tables", "jobs", "browser"}
    assert "hunter2" not in ended.stdout + ended.stderr
    assert "u:***@" in detail(report, "settings")


async def test_without_settings_the_browser_is_still_checked(cplane: "Cplane") -> None:
    ended = await cplane("doctor")
    assert ended.code == 1
    assert "✗ settings" in ended.stdout
    assert "Chromium" in ended.stdout


async def test_without_settings_the_browser_of_a_worker_is_checked(cplane: "Cplane", tmp_path: "Path") -> None:
    ended = await cplane("doctor", CPLANE_BROWSER_ENGINE="webkit", PLAYWRIGHT_BROWSERS_PATH=str(tmp_path))
    assert ended.code == 1
    assert "✗ browser    Playwright has not downloaded webkit" in ended.stdout
    assert "run `playwright install webkit`" in ended.stdout


def detail(report: dict[str, Any], name: str) -> str:
    return next(str(check["detail"]) for check in report["checks"] if check["name"] == name)
