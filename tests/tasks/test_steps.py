"""Steps are done in order, and one that cannot be done is named."""

from typing import Any

import pytest

from cplane import Context
from cplane.browser import BrowserPool
from cplane.errors import InvalidArguments
from cplane.tasks import steps
from cplane.tasks.steps import StepFailed

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
