"""Steps are done in order, and one that cannot be done is named."""

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


async def test_a_form_is_filled_in_and_its_answer_read(pool: BrowserPool, ctx: Context, tmp_path: Any) -> None:
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


async def test_a_step_that_fails_is_named_without_its_value(pool: BrowserPool, ctx: Context) -> None:
    async with pool.page() as page:
        with pytest.raises(StepFailed, match=r"^step 1 \(fill '#no'\) was not done in time; on .*: 0 such") as failed:
            await steps(
                page,
                ctx,
                html="x",
                steps=[{"action": "fill", "selector": "#no", "value": "hidden", "timeout": 100}],
            )
    assert "hidden" not in str(failed.value)


def test_an_unknown_step_is_refused_at_submit() -> None:
    with pytest.raises(InvalidArguments, match="steps/0"):
        steps.encode_json({"html": "x", "steps": [{"action": "dance"}]})


async def test_files_go_up_and_come_down(pool: BrowserPool, ctx: Context, site: Site, tmp_path: Path) -> None:
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


async def test_a_walk_through_several_pages(pool: BrowserPool, ctx: Context, site: Site) -> None:
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
    ("step", "said"),
    [
        ({"action": "assert", "selector": "h1", "text": "Other"}, r"step 1 \(assert 'h1'\) was not so; .*1 such"),
        ({"action": "assert", "selector": "b", "count": 5}, r"step 1 \(assert 'b'\) was not so"),
        ({"action": "goto", "url": "http://127.0.0.1:9/"}, r"step 1 \(goto ''\) was refused by the page"),
        ({"action": "wait_for", "url": "never"}, r"step 1 \(wait_for ''\) was not done in time"),
        (
            {"action": "upload", "selector": "input", "files": [{"job": str(uuid4()), "name": "missing.csv"}]},
            r"step 1 \(upload 'input'\) was not possible: the record has no artifact 'missing.csv'",
        ),
        ({"action": "download", "selector": "h1"}, r"step 1 \(download 'h1'\) was not done in time"),
    ],
)
async def test_what_does_not_hold_names_its_step(
    pool: BrowserPool, ctx: Context, site: Site, step: dict[str, Any], said: str
) -> None:
    given: dict[str, Any] = {"url": f"{site.url}/", "steps": [step | {"timeout": 300}]}
    async with pool.page() as page:
        with pytest.raises(StepFailed, match=said):
            await steps(page, ctx, **steps.decode(steps.encode_json(given)))


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"action": "wait_for"}, "step 1: wait_for takes one of url, load_state and milliseconds"),
        ({"action": "wait_for", "url": "a", "milliseconds": 1}, "step 1: wait_for takes one of"),
        ({"action": "upload", "selector": "a", "files": [{"name": "a"}]}, "the file 'a' takes either base64 or text"),
        ({"action": "goto", "url": "file:///etc/passwd"}, "steps/0"),
        ({"action": "upload", "selector": "a", "files": [{"name": "../a", "text": ""}]}, "steps/0"),
    ],
)
def test_steps_that_cannot_be_done_are_refused_at_submit(step: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArguments, match=said):
        steps.encode_json({"html": "x", "steps": [step]})
