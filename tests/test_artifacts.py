"""The artifact store, in a real folder."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cplane.artifacts import ArtifactStore, open_artifacts
from cplane.errors import ArtifactsUnavailable, ArtifactTooLarge, InvalidSettings
from cplane.runtime.ids import new_id

ID = new_id()


@pytest.fixture(params=["plain", "with spaces, ünïcode, 100%41 and #?"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


@pytest.fixture
def artifacts(folder: Path) -> ArtifactStore:
    return open_artifacts(folder.as_uri())


async def stream(*chunks: bytes) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


async def content(artifacts: ArtifactStore, path: str) -> bytes:
    async with artifacts.open(path) as chunks:
        return b"".join([chunk async for chunk in chunks])


def files(folder: Path) -> list[str]:
    """Return the relative paths of all files below a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("chunks", "name", "media_type", "expected"),
    [
        ([b"%PDF-"], "a.pdf", None, "application/pdf"),
        ([], "a.png", None, "image/png"),
        ([b"\0\xff" * 10], "a", None, "application/octet-stream"),
        ([b"x", b"", b"y"], "a.b-c_D.unknown", None, "application/octet-stream"),
        ([b"{}"], "a.json", "application/vnd.a+json", "application/vnd.a+json"),
        ([bytes(range(256)) * 4096 * 3, b"end"], "large.bin", None, "application/octet-stream"),
    ],
)
async def test_bytes_and_streams_are_stored_alike_with_size_hash_and_type(
    folder: Path, chunks: list[bytes], name: str, media_type: str | None, expected: str
) -> None:
    artifacts = open_artifacts(folder.as_uri())
    whole = b"".join(chunks)
    for attempt, data in ((1, whole), (2, stream(*chunks))):
        artifact, path = await artifacts.put(ID, attempt, name, data, media_type)
        assert path == f"jobs/{ID}/{attempt}/{name}"
        assert (artifact.name, artifact.media_type, artifact.size) == (name, expected, len(whole))
        assert artifact.sha256 == hashlib.sha256(whole).hexdigest()
        assert await content(artifacts, path) == whole
        assert (folder / path).read_bytes() == whole
    assert files(folder) == [f"jobs/{ID}/{attempt}/{name}" for attempt in (1, 2)]


async def test_a_large_file_is_read_in_chunks(artifacts: ArtifactStore) -> None:
    _, path = await artifacts.put(ID, 1, "large", bytes(5 * 1024 * 1024))
    async with artifacts.open(path) as chunks:
        sizes = [len(chunk) async for chunk in chunks]
    assert sum(sizes) == 5 * 1024 * 1024
    assert len(sizes) > 1


async def test_the_same_name_again_replaces_the_file(artifacts: ArtifactStore, folder: Path) -> None:
    await artifacts.put(ID, 1, "a", b"a first, longer one")
    _, path = await artifacts.put(ID, 1, "a", b"second")
    assert await content(artifacts, path) == b"second"
    assert files(folder) == [path]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "a/b", "../a", "/etc/passwd", "a\\b", "a b", "a\n", "ü.png", "a\0", "%2e%2e", "a:b", "x" * 201],
)  # fmt: skip
async def test_a_name_that_could_escape_the_folder_is_refused_before_anything_is_written(
    artifacts: ArtifactStore, folder: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=r"is not an artifact name; use 1 to 200 letters, digits"):
        await artifacts.put(ID, 1, name, b"x")
    assert files(folder.parent) == []


@pytest.mark.parametrize("name", ["a", "_", "-", "a..b", "a.", "X" * 200, "CON"])
async def test_any_other_name_is_accepted(artifacts: ArtifactStore, folder: Path, name: str) -> None:
    _, path = await artifacts.put(ID, 1, name, b"x")
    assert files(folder) == [path]
    assert await content(artifacts, path) == b"x"


async def test_a_path_outside_the_folder_is_not_read(artifacts: ArtifactStore, folder: Path) -> None:
    await artifacts.put(ID, 1, "a", b"x")
    (folder.parent / "secret").write_text("hunter2")
    for path in ("../secret", f"jobs/../../{folder.parent.name}/secret", str(folder.parent / "secret")):
        with pytest.raises((ArtifactsUnavailable, ValueError), match=r"reading 'secret'|illegal character sequence"):
            await content(artifacts, path)


async def test_the_error_for_a_lost_file_contains_its_name(artifacts: ArtifactStore, folder: Path) -> None:
    _, path = await artifacts.put(ID, 1, "shot.png", b"x")
    (folder / path).unlink()
    with pytest.raises(ArtifactsUnavailable, match=r"failed while reading 'shot.png' .*CPLANE_ARTIFACTS_URL"):
        await content(artifacts, path)


async def test_a_stream_that_fails_leaves_no_file_and_raises_its_own_error(
    artifacts: ArtifactStore, folder: Path
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await artifacts.put(ID, 1, "a", broken())
    assert files(folder) == []


@pytest.mark.parametrize("error", [OSError("the device is gone"), TimeoutError("too slow"), FileNotFoundError("input")])
async def test_an_error_of_the_data_is_not_one_of_the_store(
    artifacts: ArtifactStore, folder: Path, error: Exception
) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(type(error)) as caught:
        await artifacts.put(ID, 1, "a", broken())
    assert caught.value is error
    assert files(folder) == []


async def test_data_that_are_no_bytes_raise_their_own_error(artifacts: ArtifactStore, folder: Path) -> None:
    with pytest.raises(TypeError):
        await artifacts.put(ID, 1, "a", stream("text"))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert files(folder) == []


async def test_data_that_come_slowly_are_not_an_outage_of_the_store(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cplane.artifacts.TIMEOUT_S", 0.1)

    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(0.15)
            yield b"x"

    artifact, _ = await artifacts.put(ID, 1, "a", slow())
    assert artifact.size == 3


async def test_a_store_that_does_not_respond_is_an_outage_also_for_a_stream(
    artifacts: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(_store: object, _path: str, data: AsyncIterator[bytes]) -> None:
        async for _ in data:
            await asyncio.sleep(60)

    monkeypatch.setattr("cplane.artifacts.TIMEOUT_S", 0.1)
    monkeypatch.setattr("cplane.artifacts.obstore.put_async", hang)
    with pytest.raises(ArtifactsUnavailable, match="failed while writing 'a'"):
        await artifacts.put(ID, 1, "a", stream(b"x"))


@pytest.mark.parametrize("chunks", [[bytes(101)], [bytes(60), bytes(40), b"x"], [bytes(1)] * 200, [bytes(3_000_000)]])
async def test_a_file_that_is_too_large_is_refused_while_it_is_counted_and_nothing_is_left(
    folder: Path, chunks: list[bytes]
) -> None:
    artifacts = open_artifacts(folder.as_uri(), max_bytes=100)
    taken = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal taken
        for chunk in chunks:
            taken += len(chunk)
            yield chunk

    message = r"'a' has [\d,]+ bytes or more, and a file may have 100 \(CPLANE_ARTIFACT_MAX_MB\)"
    for data in (counted(), b"".join(chunks)):
        with pytest.raises(ArtifactTooLarge, match=message):
            await artifacts.put(ID, 1, "a", data)
        assert files(folder) == []
    assert taken <= 100 + max(map(len, chunks)), "it stops at the limit"
    for data in (stream(bytes(60), bytes(40)), bytes(100)):
        artifact, _ = await artifacts.put(ID, 1, "a", data)
        assert artifact.size == 100


async def test_a_large_file_is_hashed_without_holding_the_loop(artifacts: ArtifactStore) -> None:
    longest, last = 0.0, time.perf_counter()

    async def tick() -> None:
        nonlocal longest, last
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    data = bytes(200 * 1024 * 1024)
    ticking = asyncio.create_task(tick())
    artifact, _ = await artifacts.put(ID, 1, "a", data)
    ticking.cancel()
    assert artifact.sha256 == hashlib.sha256(data).hexdigest()
    assert longest < 0.1


async def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    artifacts = open_artifacts((tmp_path / "later").as_uri())
    (tmp_path / "later").rmdir()
    (tmp_path / "later").write_text("in the way")
    with pytest.raises(ArtifactsUnavailable, match=r"failed while writing 'a' .*CPLANE_ARTIFACTS_URL"):
        await artifacts.put(ID, 1, "a", b"x")


def test_a_url_that_cannot_be_used_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InvalidSettings, match=r"names the host 'host' .*file:///absolute/path"):
        open_artifacts("file://host/folder")
    for url in ("nope://bucket", "folder", "", (tmp_path / "file").as_uri()):
        with pytest.raises(InvalidSettings, match="CPLANE_ARTIFACTS_URL cannot be used") as caught:
            open_artifacts(url)
        assert caught.value.hint
