"""Artifacts over HTTP: they are returned complete, are revalidated cheaply, and cannot act in a browser."""

import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from cplane import ControlPlane

if TYPE_CHECKING:
    from tests.web.conftest import Api, FakeWorker

PAGE = b"<script>fetch('/api/v1/jobs')</script>"


async def record_with(
    api: "Api", fake_worker: "FakeWorker", name: str, data: bytes, media_type: str | None = None
) -> dict[str, Any]:
    """The record of a finished job with one artifact."""
    record = await api.submit()
    started = await fake_worker.start(record["id"])
    await fake_worker.add_artifact(started, name, data, media_type)
    await fake_worker.succeed(started)
    shown: dict[str, Any] = (await api.client.get(record["url"])).json()
    return shown


async def test_a_file_is_listed_and_streamed(api: "Api", fake_worker: "FakeWorker") -> None:
    data = bytes(range(256)) * 20_000  # several chunks
    record = await record_with(api, fake_worker, "shot.png", data)

    (artifact,) = record["artifacts"]
    sha256 = hashlib.sha256(data).hexdigest()
    url = f"{record['url']}/artifacts/shot.png"
    expected = {"name": "shot.png", "media_type": "image/png", "size": len(data), "sha256": sha256, "url": url}
    assert artifact == expected

    response = await api.client.get(artifact["url"])
    assert (response.status_code, response.content == data) == (200, True)
    headers = {
        "content-type": "image/png",
        "content-length": str(len(data)),
        "etag": f'"{sha256}"',
        "content-disposition": 'inline; filename="shot.png"',
        "x-content-type-options": "nosniff",
        "cache-control": "private, no-cache",
    }
    assert {name: response.headers[name] for name in headers} == headers
    assert response.headers["content-security-policy"].split("; ")[:2] == ["sandbox", "default-src 'none'"]


async def test_an_html_artifact_is_sandboxed(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await record_with(api, fake_worker, "page.html", PAGE)
    response = await api.client.get(record["artifacts"][0]["url"])
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "sandbox" in response.headers["content-security-policy"]
    assert "allow-scripts" not in response.headers["content-security-policy"]


async def test_a_pdf_is_not_sandboxed(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await record_with(api, fake_worker, "page.pdf", b"%PDF-1.7")
    response = await api.client.get(record["artifacts"][0]["url"])
    assert (response.headers["content-type"], response.headers["x-content-type-options"]) == (
        "application/pdf",
        "nosniff",
    )
    assert "content-security-policy" not in response.headers


async def test_an_invalid_media_type_becomes_octet_stream(
    api: "Api", fake_worker: "FakeWorker", subtests: pytest.Subtests
) -> None:
    for media_type in ["text/html\r\nSet-Cookie: a=b", "nonsense", "text/html;", "té/xt", "text/html\n"]:
        with subtests.test(media_type=media_type):
            record = await record_with(api, fake_worker, "a.bin", b"data", media_type)
            response = await api.client.get(record["artifacts"][0]["url"])
            assert (response.status_code, response.headers["content-type"]) == (200, "application/octet-stream")
            assert "set-cookie" not in response.headers


async def test_a_current_version_is_not_sent_again(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await record_with(api, fake_worker, "a.txt", b"text")
    url = record["artifacts"][0]["url"]
    etag = (await api.client.get(url)).headers["etag"]
    for held in (etag, f'"other", {etag}', f"W/{etag}", "*"):
        response = await api.client.get(url, headers={"if-none-match": held})
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", etag)
    assert (await api.client.get(url, headers={"if-none-match": '"other"'})).status_code == 200


async def test_head_returns_the_size_without_the_file(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await record_with(api, fake_worker, "a.txt", b"text")
    response = await api.client.head(record["artifacts"][0]["url"])
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "4")


async def test_an_empty_file_is_served(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await record_with(api, fake_worker, "empty.txt", b"")
    response = await api.client.get(record["artifacts"][0]["url"])
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")


async def test_the_file_of_the_last_attempt_is_served(api: "Api", fake_worker: "FakeWorker") -> None:
    record = await api.submit()
    for data in (b"first", b"second"):
        started = await fake_worker.start(record["id"])
        await fake_worker.add_artifact(started, "a.txt", data)
        await fake_worker.fail(started)
        await api.client.post(f"{record['url']}/retry")
    (artifact,) = (await api.client.get(record["url"])).json()["artifacts"]
    assert (await api.client.get(artifact["url"])).content == b"second"


async def test_an_unknown_file_returns_404(api: "Api", fake_worker: "FakeWorker", subtests: pytest.Subtests) -> None:
    for name in ["b.txt", "%2e%2e%2fa.txt", "%00", "a%0d%0ab", "é", "x" * 300]:
        with subtests.test(name=name):
            record = await record_with(api, fake_worker, "a.txt", b"text")
            response = await api.client.get(f"{record['url']}/artifacts/{name}")
            assert response.status_code == 404
            assert response.headers["content-type"] == "application/problem+json"


async def test_a_file_that_the_store_lost_returns_503(
    api: "Api", fake_worker: "FakeWorker", plane: ControlPlane
) -> None:
    record = await api.submit()
    started = await fake_worker.start(record["id"])
    artifact, _ = await plane.artifacts.put(started.id, started.attempt, "a.txt", b"text")
    await plane.store.add_artifact(started.id, started.attempt, artifact, "jobs/lost/a.txt")
    response = await api.client.get(f"{record['url']}/artifacts/a.txt")
    assert (response.status_code, response.json()["type"]) == (503, "/problems/artifacts-unavailable")
    assert response.headers["retry-after"] == "5"
