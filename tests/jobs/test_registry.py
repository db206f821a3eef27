"""Jobs by name: lookup, duplicates, reloaded modules, and precedence over built-in jobs."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from cplane import job
from cplane.errors import InvalidJob, UnknownJob
from cplane.jobs.registry import registry


async def noop() -> None: ...


def test_the_error_for_an_unknown_job_lists_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "jobs", {})
    with pytest.raises(UnknownJob, match=r"no job named 'a'; known: none"):
        registry.get("a")
    job(name="z")(noop)
    with pytest.raises(UnknownJob, match=r"no job named 'a'; known: z .*CPLANE_IMPORTS"):
        registry.get("a")


def write_module(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(source)
    return path


def test_two_jobs_of_one_name_are_an_error_that_names_both_modules(modules: Callable[[str, str], ModuleType]) -> None:
    source = "from cplane import job\n\n@job\nasync def twin_job() -> None: ...\n"
    modules("first_twin", source)
    with pytest.raises(InvalidJob, match="two jobs are named 'twin_job': first_twin, line 3 and second_twin, line 3"):
        modules("second_twin", source)
    assert registry.get("twin_job").fn.__module__ == "first_twin"
    with pytest.raises(InvalidJob, match="two jobs are named 'twin_job'"):
        job(name="twin_job")(noop)


def test_reloading_a_module_replaces_its_jobs(modules: Callable[[str, str], ModuleType], tmp_path: Path) -> None:
    source = "from cplane import job\n\n@job\ndef reloaded_job() -> int:\n    return 1\n"
    loaded = modules("reloaded", source)
    write_module(tmp_path, "reloaded", "\n# moved down\n" + source.replace("return 1", "return 2"))
    importlib.reload(loaded)
    assert registry.get("reloaded_job")() == 2
    assert registry.get("reloaded_job") is loaded.reloaded_job


@pytest.mark.parametrize("command", [["app.py"], ["-m", "app"], ["./app.py"]])
def test_a_program_that_imports_its_own_file_as_a_module_registers_each_job_once(
    tmp_path: Path, command: list[str]
) -> None:
    write_module(
        tmp_path,
        "app",
        "from cplane import job\n"
        "from cplane.jobs.decorator import registry\n"
        "@job\nasync def hello() -> None: ...\n"
        "if __name__ == '__main__':\n"
        "    import app\n"
        "    assert app.hello is not hello and registry.get('hello') is app.hello\n"
        "    print(app.hello.name, hello.name)\n",
    )
    ran = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.stdout, ran.stderr) == ("hello hello\n", "")


def test_a_users_job_takes_precedence_over_a_built_in_one_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from cplane.tasks.links import links

    monkeypatch.setattr(registry, "jobs", {"links": links})

    @job(name="links")
    async def ours() -> None:
        return

    assert registry.get("links") is ours
    registry.add(links)
    assert registry.get("links") is ours
