"""Files over HTTP: what a job left comes back whole, is revalidated cheaply, and can do nothing in a browser."""

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from cplane import ControlPlane

if TYPE_CHECKING:
    from tests.web.conftest import Api, Hand

PAGE = b"<script>fetch('/api/v1/jobs')</script>"


async def record_with(
    api: "Api", hand: "Hand", name: str, data: bytes, media_type: str | None = None
) -> dict[str, Any]:
    """The record of a job that left one file."""
    record = await api.submit()
    started = await hand.start(record["id"])
    await hand.leave_file(started, name, data, media_type)
    await hand.succeed(started)
    shown: dict[str, Any] = (await api.client.get(record["url"])).json()
    return shown


async def test_a_file_is_listed_and_streamed(api: "Api", hand: "Hand") -> None:
    data = bytes(range(256)) * 20_000  # several chunks
    record = await record_with(api, hand, "shot.png", data)

    (artifact,) = record["artifacts"]
    sha256 = hashlib.sha256(data).hexdigest()
    url = f"{record['url']}/artifacts/shot.png"
    expected = {"name": "shot.png", "media_type": "image/png", "size": len(data), "sha256": sha256, "url": url}
    assert artifact == expected

    answer = await api.client.get(artifact["url"])
    assert (answer.status_code, answer.content == data) == (200, True)
    headers = {
        "content-type": "image/png",
        "content-length": str(len(data)),
        "etag": f'"{sha256}"',
        "content-disposition": 'inline; filename="shot.png"',
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
    }
    assert {name: answer.headers[name] for name in headers} == headers
    assert answer.headers["content-security-policy"].split("; ")[:2] == ["sandbox", "default-src 'none'"]


async def test_a_page_that_a_job_took_from_anywhere_is_sandboxed(api: "Api", hand: "Hand") -> None:
    record = await record_with(api, hand, "page.html", PAGE)
    answer = await api.client.get(record["artifacts"][0]["url"])
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "allow-scripts" not in answer.headers["content-security-policy"]


async def test_a_pdf_is_left_to_the_browsers_viewer(api: "Api", hand: "Hand") -> None:
    record = await record_with(api, hand, "page.pdf", b"%PDF-1.7")
    answer = await api.client.get(record["artifacts"][0]["url"])
    assert (answer.headers["content-type"], answer.headers["x-content-type-options"]) == ("application/pdf", "nosniff")
    assert "content-security-policy" not in answer.headers


async def test_a_type_that_is_none_becomes_plain_bytes(api: "Api", hand: "Hand", subtests: pytest.Subtests) -> None:
    for media_type in ["text/html\r\nSet-Cookie: a=b", "nonsense", "text/html;", "té/xt", "text/html\n"]:
        with subtests.test(media_type=media_type):
            record = await record_with(api, hand, "a.bin", b"data", media_type)
            answer = await api.client.get(record["artifacts"][0]["url"])
            assert (answer.status_code, answer.headers["content-type"]) == (200, "application/octet-stream")
            assert "set-cookie" not in answer.headers


async def test_the_version_at_hand_is_not_sent_again(api: "Api", hand: "Hand") -> None:
    record = await record_with(api, hand, "a.txt", b"text")
    url = record["artifacts"][0]["url"]
    etag = (await api.client.get(url)).headers["etag"]
    for held in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        answer = await api.client.get(url, headers={"if-none-match": held})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)
    assert (await api.client.get(url, headers={"if-none-match": '"other"'})).status_code == 200


async def test_head_tells_the_size_without_the_file(api: "Api", hand: "Hand") -> None:
    record = await record_with(api, hand, "a.txt", b"text")
    answer = await api.client.head(record["artifacts"][0]["url"])
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "4")


async def test_an_empty_file_is_a_file(api: "Api", hand: "Hand") -> None:
    record = await record_with(api, hand, "empty.txt", b"")
    answer = await api.client.get(record["artifacts"][0]["url"])
    assert (answer.status_code, answer.content, answer.headers["content-length"]) == (200, b"", "0")


async def test_the_file_of_the_last_attempt_is_the_one(api: "Api", hand: "Hand") -> None:
    record = await api.submit()
    for data in (b"first", b"second"):
        started = await hand.start(record["id"])
        await hand.leave_file(started, "a.txt", data)
        await hand.fail(started)
        await api.client.post(f"{record['url']}/retry")
    (artifact,) = (await api.client.get(record["url"])).json()["artifacts"]
    assert (await api.client.get(artifact["url"])).content == b"second"


async def test_an_unknown_file_answers_404(api: "Api", hand: "Hand", subtests: pytest.Subtests) -> None:
    for name in ["b.txt", "%2e%2e%2fa.txt", "%00", "a%0d%0ab", "é", "x" * 300]:
        with subtests.test(name=name):
            record = await record_with(api, hand, "a.txt", b"text")
            answer = await api.client.get(f"{record['url']}/artifacts/{name}")
            assert answer.status_code == 404
            assert answer.headers["content-type"] == "application/problem+json"


async def test_a_file_that_the_store_lost_answers_503(api: "Api", hand: "Hand", plane: ControlPlane) -> None:
    record = await api.submit()
    started = await hand.start(record["id"])
    artifact, _ = await plane.artifacts.put(started.id, started.attempt, "a.txt", b"text")
    await plane.store.add_artifact(started.id, started.attempt, artifact, "jobs/lost/a.txt")
    answer = await api.client.get(f"{record['url']}/artifacts/a.txt")
    assert (answer.status_code, answer.json()["type"]) == (503, "/problems/artifacts-unavailable")
    assert answer.headers["retry-after"] == "5"
