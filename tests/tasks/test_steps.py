"""The job `steps`: steps run in order, and a failed step is reported."""

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cplane import Context
from cplane.browser import BrowserPool, PageOptions
from cplane.errors import InvalidArguments
from cplane.tasks import steps
from cplane.tasks.steps import StepFailed
from tests.tasks.conftest import Site

FORM = """<title>Form</title><input id=name><select id=s><option>a<option>b</select><input type=checkbox id=c>
<button onclick="setTimeout(() => { out.textContent = [name_.value, s.value, c.checked]; document.title = 'Done' })">Go</button>
<p id=out></p><script>var name_ = document.querySelector('#name')</script><a href=/1>1</a><a>2</a>"""


async def test_a_form_is_filled_in_and_its_output_extracted(pool: BrowserPool, ctx: Context, tmp_path: Any) -> None:
    given: dict[str, Any] = {
        "html": FORM,
        "steps": [
            {"action": "fill", "selector": "#name", "value": "Ada"},
            {"action": "select", "selector": "#s", "value": "b"},
            {"action": "check", "selector": "#c"},
            {"action": "click", "selector": "button"},
            {"action": "wait", "selector": "#out:has-text('Ada')"},
            {"action": "extract", "selector": "#out", "name": "out"},
            {"action": "extract", "selector": "a", "name": "links", "attribute": "href", "all": True},
            {"action": "screenshot", "name": "end"},
        ],
    }
    async with pool.page() as page:
        result = await steps(page, ctx, **steps.decode(steps.encode_json(given)))
    assert result.extracted == {"out": ["Ada,b,true"], "links": ["/1", None]}
    assert result.title == "Done"
    assert (tmp_path / "end.png").exists()


async def test_a_failed_step_is_reported_without_its_value(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        with pytest.raises(
            StepFailed, match=r"^step 1 \(fill '#no'\) timed out; on .*: 0 matching elements$"
        ) as failed:
            await steps(
                page,
                ctx,
                html="x",
                steps=[{"action": "fill", "selector": "#no", "value": "hidden", "timeout": 100}],
            )
    assert "hidden" not in str(failed.value)


def test_an_unknown_action_is_rejected_at_submission() -> None:
    with pytest.raises(InvalidArguments, match="steps/0"):
        steps.encode_json({"html": "x", "steps": [{"action": "dance"}]})


async def test_files_are_uploaded_and_downloaded(pool: BrowserPool, ctx: Context, site: Site, tmp_path: Path) -> None:
    await ctx.artifact("table.csv", b"a,b")
    html = """<input type=file id=f multiple onchange="show()"><p id=out></p>
    <a id=get download="got.txt" href="data:text/plain,hello">Get</a>
    <script>const show = async () => {
      const texts = await Promise.all([...f.files].map(async (file) => file.name + ':' + await file.text()))
      out.textContent = texts.join(' ')
    }</script>"""
    record_id = str(uuid4())
    given: dict[str, Any] = {
        "html": html,
        "steps": [
            {
                "action": "upload",
                "selector": "#f",
                "files": [
                    {"name": "one.txt", "text": "one"},
                    {"name": "two.bin", "base64": "dHdv"},
                    {"job": record_id, "name": "table.csv"},
                ],
            },
            {"action": "assert", "selector": "#out", "text": "one.txt:one two.bin:two table.csv:a,b"},
            {"action": "download", "selector": "#get", "name": "kept.txt"},
        ],
    }
    arguments = steps.decode(steps.encode_json(given))
    async with pool.page(PageOptions.read(steps.page_options(arguments))) as page:
        result = await steps(page, ctx, **arguments)
    assert [artifact.name for artifact in result.artifacts] == ["kept.txt"]
    assert (tmp_path / "kept.txt").read_bytes() == b"hello"


async def test_steps_across_several_pages(pool: BrowserPool, ctx: Context, site: Site) -> None:
    given: dict[str, Any] = {
        "url": f"{site.url}/",
        "steps": [
            {"action": "assert", "selector": "h1", "text": "Hello"},
            {"action": "assert", "selector": "a", "count": 7},
            {"action": "assert", "selector": "text=Hidden", "visible": False},
            {"action": "goto", "url": f"{site.url}/tall"},
            {"action": "wait_for", "load_state": "load"},
            {"action": "wait_for", "url": "/tall$"},
            {"action": "wait_for", "milliseconds": 1},
        ],
    }
    async with pool.page() as page:
        result = await steps(page, ctx, **steps.decode(steps.encode_json(given)))
    assert (result.final_url, result.title) == (f"{site.url}/tall", "Tall")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"action": "assert", "selector": "h1", "text": "Other"}, r"step 1 \(assert 'h1'\) did not hold; .*1 matching"),
        ({"action": "assert", "selector": "b", "count": 5}, r"step 1 \(assert 'b'\) did not hold"),
        ({"action": "goto", "url": "http://127.0.0.1:9/"}, r"step 1 \(goto ''\) was rejected by the page"),
        ({"action": "wait_for", "url": "never"}, r"step 1 \(wait_for ''\) timed out"),
        (
            {"action": "upload", "selector": "input", "files": [{"job": str(uuid4()), "name": "missing.csv"}]},
            r"step 1 \(upload 'input'\) is not possible: the record has no artifact 'missing.csv'",
        ),
        ({"action": "download", "selector": "h1"}, r"step 1 \(download 'h1'\) timed out"),
    ],
)
async def test_a_step_that_fails_is_named_in_the_error(
    pool: BrowserPool, ctx: Context, site: Site, step: dict[str, Any], message: str
) -> None:
    given: dict[str, Any] = {"url": f"{site.url}/", "steps": [step | {"timeout": 300}]}
    async with pool.page() as page:
        with pytest.raises(StepFailed, match=message):
            await steps(page, ctx, **steps.decode(steps.encode_json(given)))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"action": "wait_for"}, "step 1: wait_for takes exactly one of url, load_state and milliseconds"),
        ({"action": "wait_for", "url": "a", "milliseconds": 1}, "step 1: wait_for takes exactly one of"),
        ({"action": "upload", "selector": "a", "files": [{"name": "a"}]}, "the file 'a' takes either base64 or text"),
        ({"action": "goto", "url": "file:///etc/passwd"}, "steps/0"),
        ({"action": "upload", "selector": "a", "files": [{"name": "../a", "text": ""}]}, "steps/0"),
    ],
)
def test_invalid_steps_are_rejected_at_submission(step: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArguments, match=message):
        steps.encode_json({"html": "x", "steps": [step]})
