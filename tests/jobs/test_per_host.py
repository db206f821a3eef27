"""The host of a URL, how limits of jobs and settings combine, and which limits are refused."""

import pytest

from cplane import PerHost, job
from cplane.errors import InvalidJob, InvalidSettings
from cplane.jobs.per_host import host_of, limits
from cplane.settings import load_settings


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://Example.COM/path?q", "example.com"),
        ("https://example.com:443/", "example.com"),
        ("http://example.com:443/", "example.com:443"),
        ("http://example.com:8080/", "example.com:8080"),
        ("http://example.com./", "example.com"),
        ("https://bücher.example/", "xn--bcher-kva.example"),
        ("https://BÜCHER.example/", "xn--bcher-kva.example"),
        ("https://user:secret@example.com/", "example.com"),
        ("http://127.0.0.1:8000/", "127.0.0.1:8000"),
        ("http://[::1]/", "[::1]"),
        ("example.com", None),
        ("about:blank", None),
        ("file:///etc/hosts", None),
        ("data:text/html,x", None),
        ("", None),
        (f"http://{'a' * 300}/", None),
    ],
)
def test_the_host_of_a_url(url: str, host: str | None) -> None:
    assert host_of(url) == host


def test_limits_that_a_job_does_not_set_come_from_the_settings() -> None:
    defaults = PerHost(concurrency=4, rate=2.0)
    assert limits(None, None) is None
    assert limits(None, defaults) == defaults
    assert limits(False, defaults) is None
    assert limits(PerHost(of="page", burst=3), defaults) == PerHost(concurrency=4, rate=2.0, burst=3, of="page")
    assert limits(PerHost(rate=0), defaults) == PerHost(concurrency=4, rate=0)
    assert limits(PerHost(concurrency=1), None) == PerHost(concurrency=1)


async def of_address(address: str, number: int, others: list[str] | None = None) -> None:
    return


def test_the_host_is_read_from_the_named_argument() -> None:
    visit = job(name="per_host_of", per_host=PerHost(concurrency=1, of="address"))(of_address)
    assert visit.host(visit.encode(("https://A.test/x", 1), {}), None) == "a.test"
    assert visit.host(visit.encode(("no url", 1), {}), None) is None
    listed = job(name="per_host_list", per_host=PerHost(concurrency=1, of="others"))(of_address)
    assert listed.host(listed.encode(("x", 1, ["https://a.test"]), {}), None) is None
    assert listed.host(listed.encode(("x", 1), {}), None) is None


def test_limits_of_the_settings_apply_only_to_jobs_with_a_url() -> None:
    async def fetch(url: str) -> None:
        return

    async def count(number: int) -> None:
        return

    defaults = PerHost(concurrency=1)
    fetches, counts = job(name="per_host_fetch")(fetch), job(name="per_host_count")(count)
    free = job(name="per_host_free", per_host=False)(fetch)
    assert fetches.host(fetches.encode(("http://a.test",), {}), defaults) == "a.test"
    assert fetches.host(fetches.encode(("http://a.test",), {}), None) is None
    assert free.host(free.encode(("http://a.test",), {}), defaults) is None
    assert counts.host(counts.encode((1,), {}), defaults) is None


@pytest.mark.parametrize(
    ("per_host", "reason"),
    [
        ({"concurrency": -1, "of": "address"}, "concurrency must be 0 to 10000, not -1"),
        ({"concurrency": 1.5, "of": "address"}, "concurrency must be"),
        ({"rate": 1e-9, "of": "address"}, "rate must be 0, or one job a day"),
        ({"rate": float("nan"), "of": "address"}, "rate must be"),
        ({"rate": "fast", "of": "address"}, "rate must be"),
        ({"burst": 0, "of": "address"}, "burst must be 1"),
        ({"of": ""}, "of must be the name of an argument"),
        ({"speed": 1}, "per_host has no speed; known arguments: concurrency, rate, burst, of"),
        (2, "per_host is a PerHost, a mapping"),
        (True, "per_host is a PerHost, a mapping"),
        ({"concurrency": 1}, "per_host reads 'url', which is not an argument of the job"),
    ],
)
def test_impossible_limits_of_a_job_are_refused_at_import_in_one_sentence(per_host: object, reason: str) -> None:
    with pytest.raises(InvalidJob, match=reason) as error:
        job(name="per_host_bad", per_host=per_host)(of_address)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType, reportUnknownMemberType]
    assert "per_host_bad" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variable", ["per_host_rate", "per_host_concurrency"])
@pytest.mark.parametrize("value", [-1, 1e-9, "x", 1e9])
def test_impossible_limits_in_the_settings_are_refused(variable: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=f"CPLANE_{variable.upper()}"):
        load_settings(database_url="postgresql://h/d", redis_url="redis://h", **{variable: value})
