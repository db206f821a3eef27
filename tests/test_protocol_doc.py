"""docs/protocol.md is true: its keys, scripts, formats, constants and state table are those of the code and of real servers."""

import importlib
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from arq import constants
from pydantic import SecretStr
from redis.asyncio import Redis

from cplane.errors import InvalidTransition
from cplane.jobs.per_host import PerHost
from cplane.jobs.states import MAX_CRASHES, MAX_INTERRUPTIONS, TRANSITIONS, AttemptState, Priority, State
from cplane.keeper.blame import Verdict
from cplane.postgres import statements
from cplane.postgres.database import Database
from cplane.postgres.rows import Finish, NewRecord, RecordFilter, Renew
from cplane.postgres.statements import Statement
from cplane.postgres.store import Store
from cplane.redis import limiter
from cplane.redis.connection import connect
from cplane.redis.dead_letters import DeadLetter, DeadLetterStream
from cplane.redis.envelope import ERROR_EXT, Envelope, ErrorText, KeptResult, encode_envelope
from cplane.redis.events import CONTROL, Event, Events
from cplane.redis.limiter import FIELDS, GRANTED, Limiter, LimitRequest
from cplane.redis.messages import (
    Aborted,
    Ack,
    AckResult,
    Disposition,
    EnqueueRequest,
    EnqueueResult,
    Id,
    Lease,
    Renewal,
)
from cplane.redis.queue import Queue
from cplane.runtime.ids import new_id

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "protocol.md").read_text()
LUA = {path.stem: path.read_text() for path in sorted((ROOT / "cplane" / "redis" / "lua").glob("*.lua"))}
SCRIPTS = {name: text for name, text in LUA.items() if not name.endswith("_common")}
PYTHON = "\n".join(path.read_text() for path in sorted((ROOT / "cplane" / "redis").glob("*.py")))

CODES = {"abort": Aborted, "ack": AckResult, "enqueue": EnqueueResult, "renew": Renewal}

NOTHING = "∅"
"""The state of a record before it exists."""


# the page


def section(title: str, page: str = PAGE) -> str:
    """Return the text under a heading, up to the next heading of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n", page, re.MULTILINE)
    assert found, f"docs/protocol.md has no section '{title}'"
    end = re.compile(rf"^#{{1,{len(found[1])}}} ", re.MULTILINE).search(page, found.end())
    return page[found.end() : end.start() if end else None]


def table(text: str) -> list[list[str]]:
    """Return the rows of the first table of a text, without its head."""
    lines = list(itertools.takewhile(is_row, itertools.dropwhile(lambda line: not is_row(line), text.splitlines())))
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines[2:]]


def is_row(line: str) -> bool:
    return line.startswith("|")


def bare(cell: str) -> str:
    return cell.replace("`", "")


# scripts


ENTRY = re.compile(r"-- (KEYS\[\d+\]|ARGV\[\d+\]) (\w+): (.+)")
VALUE = re.compile(r"--   (-?\d+) (\w+): (.+)")
RETURNS = re.compile(r"-- (returns) (.+)")
VALUES_OF = re.compile(r"-- values of (\w+)")


def header(text: str) -> list[list[str]]:
    """Return the header of a script as rows: the part (`ARGV[1]`, `ARGV[1].2`, `returns -1`), its name, and its meaning.

    Raises:
        ValueError: a line of the header has none of the forms that the other scripts use.
    """
    rows: list[list[str]] = []
    block = ""
    lines = list(itertools.takewhile(lambda line: line.startswith("--"), text.splitlines()))
    first = next((i for i, line in enumerate(lines) if ENTRY.match(line)), len(lines))
    for line in itertools.takewhile(lambda line: line != "--", lines[first:]):
        if entry := ENTRY.fullmatch(line):
            block = entry[1]
            rows.append([entry[1], entry[2], entry[3]])
        elif returns := RETURNS.fullmatch(line):
            block = "returns"
            rows.append(["returns", "", returns[2]])
        elif values_of := VALUES_OF.fullmatch(line):
            block = values_of[1]
        elif (value := VALUE.fullmatch(line)) and not block.startswith("KEYS"):
            rows.append([f"{block}{'.' if block.startswith('ARGV') else ' '}{value[1]}", value[2], value[3]])
        elif re.match(r"--   +\S", line) and rows:
            rows[-1][2] += f" {line[2:].strip()}"
        else:
            raise ValueError(f"a line of no known form: {line}")
    return rows


def rows_of(rows: Sequence[Sequence[str]], part: str) -> list[Sequence[str]]:
    return [row for row in rows if re.fullmatch(part, row[0])]


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_page_describes_each_script_as_its_header_does(name: str) -> None:
    documented = [[bare(part), bare(called), meaning] for part, called, meaning in table(section(f"{name}.lua"))]
    assert documented == header(SCRIPTS[name])


def test_the_page_describes_no_script_that_does_not_exist() -> None:
    assert re.findall(r"^### (\w+)\.lua$", PAGE, re.MULTILINE) == list(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_uses_the_keys_and_arguments_of_its_header(name: str) -> None:
    rows, body = header(SCRIPTS[name]), re.sub(r"--.*", "", SCRIPTS[name])
    for kind in ("KEYS", "ARGV"):
        described = [row[0] for row in rows_of(rows, rf"{kind}\[\d+\]")]
        assert described == [f"{kind}[{number}]" for number in range(1, len(described) + 1)]
        used = set(re.findall(rf"{kind}\[\d+\]", body))
        indexed = (
            set(described[:3]) if re.search(r"KEYS\[(lane|i|request\[1\])\]", body) and kind == "KEYS" else set[str]()
        )
        assert set(described) - indexed <= used <= set(described)
    assert len(rows_of(rows, "returns")) == 1


@pytest.mark.parametrize("name", [name for name, text in SCRIPTS.items() if "FIELDS =" in text])
def test_a_script_reads_as_many_values_as_its_header_lists(name: str) -> None:
    values = rows_of(header(SCRIPTS[name]), r"ARGV\[1\]\.\d+")
    found = re.search(r"FIELDS = cmsgpack\.unpack\(ARGV\[1\]\), (\d+)\n", SCRIPTS[name])
    assert found
    assert len(values) == int(found[1])
    assert f"local {', '.join(row[1] for row in values)} =" in SCRIPTS[name]


@pytest.mark.parametrize("name", CODES)
def test_the_codes_of_a_script_are_those_of_its_enum(name: str) -> None:
    described = {row[1]: int(row[0].split()[1]) for row in rows_of(header(SCRIPTS[name]), r"returns -?\d+")}
    assert described == {code.name.lower(): code.value for code in CODES[name]}


def test_dispositions_and_codes_of_the_limiter_are_those_of_the_code() -> None:
    described = {row[1]: int(row[0].split()[1]) for row in rows_of(header(SCRIPTS["ack"]), r"disposition \d+")}
    assert described == {disposition.name.lower(): disposition.value for disposition in Disposition}
    described = {row[1]: int(row[0].split()[1]) for row in rows_of(header(SCRIPTS["acquire"]), r"returns -?\d+")}
    assert described == {"granted": GRANTED, "lease_gone": limiter.LEASE_GONE}


class Recorder:
    """A stand-in for Redis that records how scripts are called."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[Any]]] = []

    async def evalsha(self, _sha: str, count: int, *rest: Any) -> Any:
        self.calls.append((list(rest[:count]), list(rest[count:])))
        return [1]

    async def called(self, call: Awaitable[object]) -> tuple[int, list[Any]]:
        """Return the number of keys and the arguments of the only script that a call runs."""
        self.calls.clear()
        with suppress(ValueError, TypeError):  # the reply is not that of the script
            await call
        ((keys, arguments),) = self.calls
        return len(keys), arguments


async def test_the_code_calls_each_script_with_the_keys_arguments_and_values_of_its_header() -> None:
    redis: Any = Recorder()
    queue, limits = Queue(redis), Limiter(redis)
    lease = Lease("default", Priority.NORMAL, "a", b"", 1, b"1", "t")
    calls: dict[str, Awaitable[object]] = {
        "abort": queue.abort("default", "a", b"", 1),
        "ack": queue.ack([Ack(lease, Disposition.DONE)]),
        "acquire": limits.acquire("default", [LimitRequest(lease, ("a.test",), PerHost())]),
        "claim": queue.claim("default", 1, 30),
        "cool_down": limits.cool_down("a.test", 1),
        "enqueue": queue.enqueue([EnqueueRequest("default", "a", b"")]),
        "epoch": queue.epoch(1),
        "publish": Events(redis).publish([Event(new_id(), State.QUEUED)]),
        "renew": queue.renew([lease], 30),
        "stats": queue.stats("default"),
        "sweep": queue.sweep("default"),
    }
    assert list(calls) == list(SCRIPTS)
    for name, call in calls.items():
        rows = header(SCRIPTS[name])
        keys, arguments = await redis.called(call)
        assert (keys, len(arguments)) == (len(rows_of(rows, r"KEYS\[\d+\]")), len(rows_of(rows, r"ARGV\[\d+\]"))), name
        if values := rows_of(rows, r"ARGV\[1\]\.\d+"):
            batch = msgspec.msgpack.decode(arguments[0])
            assert len(batch[0] if isinstance(batch[0], list) else batch) == len(values), name


def test_a_header_of_another_form_is_an_error() -> None:
    for line in ("-- KEYS[2]  the wake list", "-- ARGV[1]: capacity", "-- answers 1 if it was written"):
        with pytest.raises(ValueError, match="a line of no known form"):
            header(f"-- What it does.\n-- KEYS[1] first: a set\n{line}\nlocal now\n")


# keys


def documented_keys() -> dict[str, list[str]]:
    """Return the rows of the tables of keys by pattern: `*` in place of each word in capitals."""
    rows = [*table(section("arq's keys")), *table(section("cplane's keys"))]
    keys = [(re.sub(r"\b[A-Z]{2,}\b", "*", bare(row[0])), row) for row in rows]
    assert len(dict(keys)) == len(keys)
    return dict(keys)


def keys_in_the_code() -> set[str]:
    """Return the patterns of the keys that scripts and Python name, and the suffixes (`:slots`) that they add to some."""
    lua = re.sub(r"--.*", "", "\n".join(LUA.values()))
    found = {key + ("*" if more else "") for key, more in re.findall(r"'((?:arq|cplane):[^']*)'( \.\.)?", lua)}
    python = re.sub(r'"""(.|\n)*?"""', "", PYTHON).replace("{default_queue_name}", constants.default_queue_name)
    for literal in re.findall(r'"((?:arq|cplane):[^" ]*)"', python):
        found.add(re.sub(r"\{[^}]*\}|:$", lambda part: ":*" if part[0] == ":" else "*", literal))
    return found | set(re.findall(r"\.\. '(:[a-z]+)'", lua)) | set(re.findall(r'\}(:[a-z]+)"', python))


def test_every_key_that_the_code_names_is_on_the_page() -> None:
    documented, found = documented_keys(), keys_in_the_code()
    assert found >= {"arq:job:*", "cplane:host:*", ":slots", ":subscribed"}
    for key in found:
        assert key in documented or (key[0] == ":" and any(pattern.endswith(key) for pattern in documented)), key


async def test_the_keys_that_a_run_leaves_are_those_of_the_page_with_their_type_and_expiry(redis_url: str) -> None:
    documented = documented_keys()
    seen: dict[str, tuple[str, bool]] = {}

    async with connect(SecretStr(redis_url)) as client:
        redis: Any = client

        async def check() -> None:
            for key in await redis.keys("*"):
                fits = [pattern for pattern in documented if fits_pattern(key.decode(), pattern)]
                assert fits, f"{key!r} is not on the page"
                pattern = min(fits, key=lambda each: (each.count("*"), -len(each)))
                seen[pattern] = (await redis.type(key)).decode(), await redis.pttl(key) >= 0

        await use_every_key(client, check)
    assert seen == {
        pattern: (bare(row[1]).replace("sorted set", "zset"), row[4] not in {"no", "its entries do"})
        for pattern, row in documented.items()
    }


def fits_pattern(key: str, pattern: str) -> bool:
    return (
        re.fullmatch(re.escape(pattern).replace(r"\*", r"[^:@]+" if "host" not in pattern else r"[^:]+"), key)
        is not None
    )


async def use_every_key(client: Redis, check: Callable[[], Awaitable[None]]) -> None:
    """Make every key exist, and check the keys at a few moments."""
    redis: Any = client
    queue, limits, events = Queue(client), Limiter(client), Events(client)

    def scheduled(id_: str, **options: Any) -> EnqueueRequest:
        return EnqueueRequest(options.pop("queue", "default"), id_, encode_envelope("f"), **options)

    await queue.enqueue([scheduled(str(priority), priority=priority) for priority in Priority])
    await queue.enqueue([scheduled(f"{priority} browser", queue="browser", priority=priority) for priority in Priority])
    await check()
    retried, released, done = (await queue.claim("default", 3, 30)).leases
    await limits.acquire(
        "default", [LimitRequest(each, ("a.test",), PerHost(concurrency=1)) for each in (retried, released)]
    )
    await check()
    await queue.ack([Ack(retried, Disposition.RETRY), Ack(done, Disposition.DONE, 60_000, b"result")])
    await redis.set("arq:in-progress:low", "token", px=60_000)
    await queue.abort("default", "low", b"", 60)
    await limits.cool_down("b.test", 60)
    await events.publish([Event(new_id(), State.QUEUED)])
    for stream in ("cplane:events", CONTROL):
        await anext(events.follow(stream))
        await events.publish([Event(new_id(), State.QUEUED)], stream)
    await DeadLetterStream(client).add([(Id("default", Priority.NORMAL, "a"), "reason", b"payload")])
    await queue.epoch(1)
    await queue.nudge("default")
    for name in ("arq:queue", "arq:queue:browser"):
        await queue.write_health(name + constants.health_check_key_suffix, "j_complete=1", 60)
    await check()


# formats


def default_of(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    return {"null": "nil"}.get(text := json.dumps(field.default), text)


@pytest.mark.parametrize(
    ("title", "struct"), [("The envelope", Envelope), ("The kept result", KeptResult), ("Events and control", Event)]
)
def test_the_fields_of_a_format_are_those_of_its_struct(title: str, struct: type[msgspec.Struct]) -> None:
    documented = [(bare(row[0]), bare(row[2])) for row in table(section(title))]
    assert documented == [(field.encode_name, default_of(field)) for field in msgspec.structs.fields(struct)]


def test_the_error_extension_is_that_of_the_code() -> None:
    text = section("Errors")
    assert f"extension type {ERROR_EXT}" in text
    assert [bare(row[0]) for row in table(text)] == [field.name for field in msgspec.structs.fields(ErrorText)]


def test_the_fields_of_a_dead_letter_are_those_of_the_code() -> None:
    documented = [bare(row[0]) for row in table(section("Dead letters"))]
    assert documented == [field.name for field in fields(DeadLetter) if field.name != "at_ms"]
    written = re.search(r"'XADD', KEYS\[5\], (.|\n)*?\)\n", LUA["ack"])
    assert written
    assert [name for name in re.findall(r"'(\w+)'", written[0]) if name.islower()] == documented


def test_the_fields_of_a_limit_key_are_those_of_the_code() -> None:
    assert [bare(row[0]) for row in table(section("Limit keys"))] == FIELDS
    for name in FIELDS:
        assert f"'{name}'" in LUA["limiter_common"]


def test_the_constants_are_those_of_the_code() -> None:
    rows = table(section("Constants"))
    for name, value, _ in rows:
        module, constant = bare(name).rsplit(".", 1)
        actual = getattr(importlib.import_module(f"cplane.{module}"), constant)
        assert float(value.replace(",", "")) == actual, name
    assert rows


# states


class WatchedDatabase(Database):
    """A database that records which statement changed the state of a record, and how."""

    def __init__(self, url: str) -> None:
        super().__init__(SecretStr(url))
        self.moves: set[tuple[str, str, str]] = set()

    async def fetch(self, statement: Statement, values: Mapping[str, object]) -> list[Any]:
        """Run a statement as `Database` does, and compare the states before and after."""
        before = await self.states()
        rows = await super().fetch(statement, values)
        for record_id, state in (await self.states()).items():
            if (old := before.get(record_id, NOTHING)) != state:
                self.moves.add((old, state, name_of(statement)))
        return rows

    async def states(self) -> dict[UUID, str]:
        """Return the state of every record."""
        return dict(await super().fetch(Statement("SELECT id, state FROM cplane.jobs"), {}))

    async def reset(self, **columns: str) -> UUID:
        """Delete every record, and insert one with these columns."""
        await super().fetch(Statement("DELETE FROM cplane.jobs"), {})
        given = {"id": f"'{new_id()}'", "job": "'j'", "queue": "'q'", "cause": "'submit'", "args": "'{}'"} | columns
        sql = f"INSERT INTO cplane.jobs ({', '.join(given)}) VALUES ({', '.join(given.values())}) RETURNING id"
        id_: UUID = (await super().fetch(Statement(sql), {}))[0][0]
        return id_


def name_of(statement: Statement) -> str:
    return next(name for name, value in vars(statements).items() if value is statement)


def changes_state(sql: str) -> bool:
    """Return whether a statement inserts records or sets their state."""
    updates = re.findall(r"UPDATE cplane\.jobs\s+SET (.*?)(?:WHERE|FROM)", sql, re.DOTALL)
    return "INSERT INTO cplane.jobs" in sql or any(re.search(r"(?<![\w.])state = ", update) for update in updates)


@dataclass(frozen=True, slots=True)
class Move:
    """One row of the state table."""

    before: str
    after: str
    statement: str
    guards: tuple[str, ...]


def documented_moves() -> list[Move]:
    return [
        Move(bare(before), bare(after), bare(statement), tuple(re.findall(r"`([^`]+)`", guard)))
        for before, after, statement, guard, *_ in table(section("State changes"))
    ]


def test_the_state_table_has_the_legal_changes() -> None:
    documented = {(move.before, move.after) for move in documented_moves()}
    legal = {(before.value, after.value) for before, afters in TRANSITIONS.items() for after in afters}
    assert documented == legal | {(NOTHING, "queued")}


def test_the_state_table_names_every_statement_that_changes_a_state() -> None:
    changing = {
        name for name, value in vars(statements).items() if isinstance(value, Statement) and changes_state(value.sql)
    }
    assert {move.statement for move in documented_moves()} == changing


def test_the_guards_of_the_state_table_are_in_the_statements() -> None:
    for move in documented_moves():
        sql = " ".join(vars(statements)[move.statement].sql.split())
        assert move.guards or move.before == NOTHING, f"{move.statement} has no guard on the page"
        for guard in move.guards:
            assert guard in sql, f"{move.statement} has no guard {guard}"
        assert move.before == NOTHING or f"'{move.before}'" in " ".join(move.guards)


@dataclass(frozen=True, slots=True)
class Verb:
    """What may change the state of a record."""

    name: str
    call: Callable[[Store, UUID], Awaitable[object]]


def finish(state: State, *, plain: bool = False) -> Callable[[Store, UUID], Awaitable[object]]:
    async def call(store: Store, id_: UUID) -> None:
        attempt_state = AttemptState(state) if state.final else AttemptState.FAILED
        result = b"1" if plain else None
        await store.finish(
            [Finish(id=id_, attempt=1, token="t", state=state, attempt_state=attempt_state, result_json=result)]
        )

    return call


def rescue(verdict: Verdict) -> Callable[[Store, UUID], Awaitable[object]]:
    async def call(store: Store, id_: UUID) -> None:
        values = {
            "ids": [id_], "attempts": [1], "tokens": ["t"], "verdicts": [verdict.value], "error_types": ["E"],
            "error_messages": ["e"], "max_crashes": MAX_CRASHES, "max_interruptions": MAX_INTERRUPTIONS,
        }  # fmt: skip
        await store._database.fetch(statements.RESCUE, values)  # pyright: ignore[reportPrivateUsage]  the keeper has no store

    return call


def test_the_page_has_every_verdict() -> None:
    rows = table(section("State changes").partition("carries a verdict")[2])
    assert [bare(row[0]) for row in rows] == [verdict.value for verdict in Verdict]


VERBS = (
    Verb("cancel", lambda store, id_: store.cancel(id_)),
    Verb("replay", lambda store, id_: store.replay(id_)),
    Verb("replay_many", lambda store, _: store.replay_many(RecordFilter())),
    Verb("start", lambda store, id_: store.start("w", [id_], "t2", 30)),
    Verb("renew", lambda store, id_: store.renew([Renew(id=id_, attempt=1, token="t")], 30)),
    Verb("reap", lambda store, _: store.reap(10)),
    Verb("plain success", finish(State.SUCCEEDED, plain=True)),
    *(Verb(f"rescue as {verdict}", rescue(verdict)) for verdict in Verdict),
    *(Verb(f"finish as {state}", finish(state)) for state in State if state is not State.RUNNING),
)


async def test_every_statement_makes_the_changes_of_the_state_table_and_no_other(database_url: str) -> None:
    """Each verb is called on a record in each state, with and without a wanted cancel and a last crash."""
    async with WatchedDatabase(database_url) as database:
        store = Store(database)
        record = NewRecord(id=new_id(), job="j", queue="q", args_json=b"{}")
        await store.submit([record])
        await store.submit([msgspec.structs.replace(record, id=new_id())], early=True)
        await store.submit([msgspec.structs.replace(record, id=new_id(), key="k", request_hash=b"1")])
        for state, cancel, crashes, verb in itertools.product(State, (False, True), (0, MAX_CRASHES - 1), VERBS):
            running = {"lease_until": "clock_timestamp() - interval '1 second'"} if state is State.RUNNING else {}
            id_ = await database.reset(
                state=f"'{state}'", cancel_requested=str(cancel).lower(), crashes=str(crashes), attempt="1",
                lease_token="'t'", worker="'w'", started_at="now()", run_at="now() - interval '1 second'", **running,
            )  # fmt: skip
            with suppress(InvalidTransition):
                await verb.call(store, id_)
        assert database.moves == {(move.before, move.after, move.statement) for move in documented_moves()}
