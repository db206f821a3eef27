"""Type checkers know the arguments and results of jobs: files in `typing` have errors on the marked lines only."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "typing").glob("*.py"))
CACHE = ROOT / ".mypy_cache" / "tests-typing"
MARK = re.compile(r"  # error$")

Line = tuple[str, int]


def marked() -> set[Line]:
    """Return the lines that must be errors."""
    return {
        (file.name, number)
        for file in FILES
        for number, line in enumerate(file.read_text().splitlines(), start=1)
        if MARK.search(line)
    }


def run(*command: str) -> str:
    ran = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout, ran.stderr
    return ran.stdout


def assert_same(found: Iterable[tuple[Line, str]]) -> None:
    """Assert that every marked line has an error, and no other line has one."""
    messages = dict(found)
    unexpected = {line: message for line, message in messages.items() if line not in marked()}
    assert not unexpected
    accepted = sorted(marked() - messages.keys())
    assert not accepted, "marked as errors, but accepted"


CONFIG = """
[mypy]
python_version = 3.11
plugins = pydantic.mypy
follow_imports = silent
[mypy-asyncpg.*]
ignore_missing_imports = True
"""


def test_every_file_marks_errors() -> None:
    assert len(marked()) > 50
    assert {name for name, _ in marked()} == {file.name for file in FILES}


def test_mypy_rejects_only_the_marked_lines(tmp_path: Path) -> None:
    config = tmp_path / "mypy.ini"  # the project's own configuration excludes these files
    config.write_text(CONFIG)
    options = ["--strict", "--output", "json", "--config-file", str(config), "--cache-dir", str(CACHE)]
    output = run("mypy", *options, *map(str, FILES))
    errors: list[dict[str, Any]] = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert_same(
        ((Path(error["file"]).name, error["line"]), error["message"])
        for error in errors
        if error["severity"] == "error"
    )


def test_pyright_rejects_only_the_marked_lines(tmp_path: Path) -> None:
    for file in FILES:
        shutil.copy(file, tmp_path)
    config = {"extraPaths": [str(ROOT)], "pythonVersion": "3.11", "typeCheckingMode": "strict"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    report = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(tmp_path)))
    assert report["summary"]["filesAnalyzed"] == len(FILES)
    assert_same(
        ((Path(error["file"]).name, error["range"]["start"]["line"] + 1), error["message"])
        for error in report["generalDiagnostics"]
        if error["severity"] == "error"
    )
