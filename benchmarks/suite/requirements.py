"""What is required of cplane, each next to the figure of the same run."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.suite.results import Results, Row
from benchmarks.suite.scenarios import footprint, http, pickup, scale, submitting, throughput
from benchmarks.suite.systems import ON_POSTGRES, ON_REDIS, OURS, RECORDED, TRANSIENT


@dataclass(frozen=True, slots=True)
class Requirement:
    """One sentence with a bound; `measure` returns the figure and what it is compared with, or None if the run did not measure it."""

    says: str
    at_least: float | None
    at_most: float | None
    unit: str
    measure: Callable[[Results], tuple[float, str] | None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A requirement with its figure; `met` is None if it was not measured."""

    says: str
    required: str
    measured: str
    against: str
    met: bool | None


def _against(
    scenario: str, case: str, ours: str, among: frozenset[str] | None = None
) -> Callable[[Results], tuple[float, str] | None]:
    """Measure the ratio of cplane to the best peer."""

    def measure(results: Results) -> tuple[float, str] | None:
        row, peer = results.find(scenario, case, ours), results.best_peer(scenario, case, among)
        if row is None or peer is None:
            return None
        return row.value / peer.value, f"{_figure(row)} against {peer.system}'s {_figure(peer)}"

    return measure


def _own(
    scenario: str, case: str, system: str, base: str | None = None
) -> Callable[[Results], tuple[float, str] | None]:
    """Measure a figure of cplane, or its ratio to the case `base`."""

    def measure(results: Results) -> tuple[float, str] | None:
        row = results.find(scenario, case, system)
        if row is None or base is None:
            return (row.value, system) if row is not None else None
        from_row = results.find(scenario, base, system)
        return (
            (row.value / from_row.value, f"{_figure(row)} against {_figure(from_row)}")
            if from_row is not None
            else None
        )

    return measure


def _largest(middle: str, end: str, system: str, *, ratio: bool) -> Callable[[Results], tuple[float, str] | None]:
    """Measure the case of `scale` with the largest number."""

    def measure(results: Results) -> tuple[float, str] | None:
        rows = [row for row in results.rows if row.scenario == scale.NAME and row.system == system and row.values]
        rows = sorted((row for row in rows if row.case.endswith(f"{middle}, {end}")), key=_number)
        if not rows:
            return None
        last = rows[-1]
        size = f"{_number(last):,} {middle}"
        if not ratio:
            return last.value, f"with {size}"
        return last.value / rows[0].value, f"{_figure(last)} with {size}, {_figure(rows[0])} with {_number(rows[0]):,}"

    return measure


def _http_ratio(results: Results) -> tuple[float, str] | None:
    ours, theirs = (results.find(http.NAME, http.RATE, name) for name in (http.OURS, http.THEIRS))
    if ours is None or theirs is None:
        return None
    return ours.value / theirs.value, f"{_figure(ours)} against {_figure(theirs)}"


def _wrong(results: Results) -> tuple[float, str] | None:
    """Jobs of cplane that were lost or ran twice."""
    rows = [row for row in results.rows if row.values and row.system in {*OURS, http.OURS}]
    if not rows:
        return None
    lost, doubled = sum(row.lost for row in rows), sum(row.doubled for row in rows)
    return lost + doubled, f"{lost} lost, {doubled} doubled"


T, P = throughput.NAME, pickup.NAME
ONE, FOUR = throughput.case(1), throughput.case(4)
IDLE_P50 = f"{pickup.IDLE}, p50"

REQUIREMENTS = (
    Requirement("jobs of cplane that were lost or ran twice", None, 0, "jobs", _wrong),
    Requirement("transient no-op jobs, best peer", 10, None, "×", _against(T, ONE, TRANSIENT.name)),
    Requirement("recorded no-op jobs, best peer on Redis", 5, None, "×", _against(T, ONE, RECORDED.name, ON_REDIS)),
    Requirement("recorded no-op jobs, procrastinate", 20, None, "×", _against(T, ONE, RECORDED.name, ON_POSTGRES)),
    Requirement("transient, 4 workers against 1", 1, None, "×", _own(T, FOUR, TRANSIENT.name, ONE)),
    Requirement("recorded, 4 workers against 1", 1, None, "×", _own(T, FOUR, RECORDED.name, ONE)),
    Requirement("recorded submit_many, best peer's bulk", 3, None, "×", _against(submitting.NAME, submitting.BULK, RECORDED.name)),
    Requirement("HTTP submits, the reference", 8, None, "×", _http_ratio),
    Requirement("HTTP submits, p99", None, 50, "ms", _own(http.NAME, http.P99, http.OURS)),
    Requirement("transient pickup p50, best peer", None, 1, "×", _against(P, IDLE_P50, TRANSIENT.name)),
    Requirement("recorded pickup p50, best peer", None, 2, "×", _against(P, IDLE_P50, RECORDED.name)),
    Requirement("transient throughput, most queued against 1,000", 0.9, None, "×", _largest("queued", "throughput", TRANSIENT.name, ratio=True)),
    Requirement("recorded throughput, most queued against 1,000", 0.9, None, "×", _largest("queued", "throughput", RECORDED.name, ratio=True)),
    Requirement("a page of records, p99", None, 20, "ms", _largest("records", "records() p99", RECORDED.name, ratio=False)),
    Requirement("a page of records over HTTP, p99", None, 20, "ms", _largest("records", "GET page p99", RECORDED.name, ratio=False)),
    Requirement("an idle worker", None, 1, "% CPU", _own(footprint.NAME, footprint.IDLE, RECORDED.name)),
    Requirement("a worker after 1,000 jobs", None, 120, "MB", _own(footprint.NAME, footprint.MEMORY, RECORDED.name)),
)  # fmt: skip


def judge(results: Results) -> list[Verdict]:
    """Return the verdict on every requirement."""
    return [_verdict(requirement, requirement.measure(results)) for requirement in REQUIREMENTS]


def _verdict(requirement: Requirement, found: tuple[float, str] | None) -> Verdict:
    low, high, unit = requirement.at_least, requirement.at_most, requirement.unit
    required = f"≥ {low:g} {unit}" if low is not None else f"≤ {high:g} {unit}"
    if found is None:
        return Verdict(requirement.says, required, "", "", None)
    value, against = found
    met = (low is None or value >= low) and (high is None or value <= high)
    return Verdict(requirement.says, required, f"{value:.2f} {unit}", against, met)


def _number(row: Row) -> int:
    return int(row.case.partition(" ")[0].replace(",", ""))


def _figure(row: Row) -> str:
    return f"{figure(row.value)} {row.unit}"


def figure(value: float) -> str:
    """Format a number with about three digits."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
