"""The gate, with clients that behave as a browser does, and as a browser never would."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from cplane.egress import EgressRules, Gate, Upstream, gate, proxy
from cplane.egress.gate import MAX_CONNECTIONS, Reply
from tests.egress.internet import Handler, Internet, echo

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def internet() -> AsyncGenerator[Internet]:
    internet = Internet()
    async with internet.serve("site.example", "1.1.1.1", 443, echo):
        yield internet


opened: list[asyncio.StreamWriter] = []


@pytest.fixture(autouse=True)
async def no_writer_stays_open() -> AsyncGenerator[None]:
    yield
    for writer in opened:
        writer.close()
    opened.clear()


async def open_client(gate: Gate) -> Streams:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(gate.server).port)
    opened.append(writer)
    return reader, writer


async def greet(gate: Gate) -> Streams:
    reader, writer = await open_client(gate)
    writer.write(b"\x05\x01\x00")
    assert await reader.readexactly(2) == b"\x05\x00"
    return reader, writer


async def ask(gate: Gate, host: str, port: int = 443) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Request a host; returns the reply code and the streams."""
    reader, writer = await greet(gate)
    name = host.encode()
    writer.write(b"\x05\x01\x00\x03" + bytes((len(name),)) + name + port.to_bytes(2, "big"))
    reply = await reader.readexactly(10)
    return reply[1], reader, writer


async def request(gate: Gate, host: str, port: int = 443) -> asyncio.StreamWriter:
    """Request a host without waiting for the reply."""
    _, writer = await greet(gate)
    writer.write(b"\x05\x01\x00\x03" + bytes((len(host),)) + host.encode() + port.to_bytes(2, "big"))
    return writer


async def closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), 10) == b""
    except ConnectionError:
        return True


async def until_empty(gate: Gate) -> None:
    async with asyncio.timeout(10):
        while gate.connections:
            await asyncio.sleep(0.01)


async def test_bytes_go_both_ways_and_a_half_close_keeps_the_other_direction_open(internet: Internet) -> None:
    async with internet.proxy() as proxy, proxy.gate() as gate:
        code, reader, writer = await ask(gate, "site.example")
        assert code == Reply.SUCCEEDED
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        writer.write(b"last")
        writer.write_eof()
        assert await reader.read() == b"last"
        writer.close()
        assert (gate.bytes_in, gate.bytes_out) == (9, 9)
        await until_empty(gate)


async def test_20_mb_go_through(internet: Internet) -> None:
    size = 20_000_000
    async with internet.proxy() as proxy, proxy.gate() as gate:
        _, reader, writer = await ask(gate, "site.example")

        async def send() -> None:
            for _ in range(size // 100_000):
                writer.write(b"x" * 100_000)
                await writer.drain()
            writer.write_eof()

        sending = asyncio.create_task(send())
        got = 0
        while data := await reader.read(65536):
            got += len(data)
        await sending
        assert got == size
        writer.close()


async def test_a_client_that_does_not_read_stops_the_sender(internet: Internet) -> None:
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        try:
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()
                sent += 65536
        except ConnectionError:
            writer.close()

    async with internet.serve("flood.example", "1.1.1.2", 443, flood), internet.proxy() as proxy, proxy.gate() as gate:
        _, _, writer = await ask(gate, "flood.example")
        before = -1
        async with asyncio.timeout(20):
            while before != sent:
                before = sent
                await asyncio.sleep(0.3)
        assert sent < 50_000_000
        writer.transport.abort()
        await until_empty(gate)


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", []),
        ("::1", []),
        ("169.254.169.254", []),
        ("::ffff:10.0.0.1", []),
        ("inside.example", ["10.0.0.1"]),
        ("both.example", ["1.1.1.1", "10.0.0.1"]),
        ("mapped.example", ["::ffff:7f00:1"]),
    ],
)
async def test_hosts_that_are_not_public_are_refused_recorded_and_never_dialled(
    internet: Internet, host: str, addresses: list[str]
) -> None:
    internet.names[host] = addresses
    async with internet.proxy() as proxy, proxy.gate() as gate:
        code, reader, writer = await ask(gate, host)
        assert code == Reply.NOT_ALLOWED
        assert await closed(reader)
        assert internet.dialled == []
        assert [blocked.host for blocked in gate.blocked] == [host]
        writer.close()


async def test_addresses_in_binary_form_are_judged_too(internet: Internet) -> None:
    async with internet.proxy() as proxy, proxy.gate() as gate:
        for address_type, address in ((b"\x01", bytes((127, 0, 0, 1))), (b"\x04", bytes(15) + b"\x01")):
            reader, writer = await greet(gate)
            writer.write(b"\x05\x01\x00" + address_type + address + (443).to_bytes(2, "big"))
            assert (await reader.readexactly(10))[1] == Reply.NOT_ALLOWED
            writer.close()
        reader, writer = await greet(gate)
        writer.write(b"\x05\x01\x00\x01\x01\x01\x01\x01" + (443).to_bytes(2, "big"))
        assert (await reader.readexactly(10))[1] == Reply.SUCCEEDED
        writer.close()


async def test_a_name_that_changes_its_address_gains_nothing(internet: Internet) -> None:
    internet.rebinding["rebind.example"] = ["1.1.1.1", "127.0.0.1"]
    async with internet.proxy() as proxy, proxy.gate() as gate:
        for _ in range(3):
            code, _, writer = await ask(gate, "rebind.example")
            assert code == Reply.SUCCEEDED
            writer.close()
        assert internet.resolved == ["rebind.example"]
        assert {address for address, _ in internet.dialled} == {"1.1.1.1"}
    async with internet.proxy() as proxy, proxy.gate() as gate:
        assert (await ask(gate, "rebind.example"))[0] == Reply.NOT_ALLOWED


async def test_unreachable_hosts_are_distinguished_from_blocked_ones(internet: Internet) -> None:
    internet.names["dead.example"] = ["1.2.3.4"]
    async with internet.proxy() as proxy, proxy.gate() as gate:
        assert (await ask(gate, "missing.example"))[0] == Reply.HOST_UNREACHABLE
        assert (await ask(gate, "dead.example"))[0] == Reply.HOST_UNREACHABLE
        assert gate.blocked == []
        assert str(gate.failed[0]) == "missing.example:443 was not reached: there is no such name"
        assert str(gate.failed[1]).startswith("dead.example:443 was not reached: nothing listens")


async def test_the_next_address_is_tried_when_one_refuses(internet: Internet) -> None:
    internet.names["two.example"] = ["1.2.3.4", "1.1.1.1"]
    async with internet.proxy() as proxy, proxy.gate() as gate:
        assert (await ask(gate, "two.example"))[0] == Reply.SUCCEEDED
        assert internet.dialled == [("1.2.3.4", 443), ("1.1.1.1", 443)]


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x04\x01\x00\x50\x01\x01\x01\x01\x00",
        b"\x05\x01\x02",
        b"\x05" + b"\xff" + b"\x02" * 255,
        b"\x00" * 600,
        b"\x05\x01\x00" + b"\x05\x01\x00\x03\x0csite.example\x01\xbbtoo early",
    ],
    ids=["http", "socks4", "credentials", "many methods", "zeros", "early data"],
)
async def test_connections_that_do_not_speak_socks5_are_closed(internet: Internet, sent: bytes) -> None:
    async with internet.proxy() as proxy, proxy.gate() as gate:
        reader, writer = await open_client(gate)
        writer.write(sent)
        writer.write_eof()
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 10)
        await until_empty(gate)
        writer.close()


@pytest.mark.parametrize(
    ("request_", "reply"),
    [
        (b"\x05\x02\x00\x01\x01\x01\x01\x01\x01\xbb", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x03\x00\x01\x01\x01\x01\x01\x01\xbb", Reply.COMMAND_NOT_SUPPORTED),
        (b"\x05\x01\x00\x09\x01\x01\x01\x01\x01\xbb", Reply.ADDRESS_NOT_SUPPORTED),
        (b"\x04\x01\x00\x01\x01\x01\x01\x01\x01\xbb", Reply.FAILURE),
        (b"\x05\x01\x00\x03\x00\x01\xbb", Reply.ADDRESS_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x05a\x00b/c\x01\xbb", Reply.ADDRESS_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x04\xff\xfe\xfd\xfc\x01\xbb", Reply.ADDRESS_NOT_SUPPORTED),
        (b"\x05\x01\x00\x03\x07u@a.com\x01\xbb", Reply.ADDRESS_NOT_SUPPORTED),
    ],
    ids=["bind", "udp", "kind", "version", "no name", "malformed name", "no ascii", "userinfo"],
)
async def test_unsupported_requests_get_their_reply_code(internet: Internet, request_: bytes, reply: Reply) -> None:
    async with internet.proxy() as proxy, proxy.gate() as gate:
        reader, writer = await greet(gate)
        writer.write(request_)
        assert (await reader.readexactly(10))[1] == reply
        assert await closed(reader)
        writer.close()


async def test_a_request_may_come_byte_by_byte(internet: Internet) -> None:
    async with internet.proxy() as proxy, proxy.gate() as gate:
        reader, writer = await open_client(gate)
        for byte in b"\x05\x01\x00":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert await reader.readexactly(2) == b"\x05\x00"
        for byte in b"\x05\x01\x00\x03\x0csite.example\x01\xbb":
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)
        assert (await reader.readexactly(10))[1] == Reply.SUCCEEDED
        writer.close()


async def test_a_client_that_sends_nothing_is_disconnected_in_time(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_TIMEOUT_S", 0.1)
    async with internet.proxy() as proxy, proxy.gate() as open_gate:
        reader, writer = await open_client(open_gate)
        assert await closed(reader)
        writer.close()


async def test_connections_over_the_limit_are_closed(internet: Internet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "MAX_CONNECTIONS", 2)
    async with internet.proxy() as proxy, proxy.gate() as open_gate:
        kept = [await greet(open_gate) for _ in range(2)]
        reader, writer = await open_client(open_gate)
        assert await closed(reader)
        writer.close()
        for _, other in kept:
            other.close()
        await until_empty(open_gate)
        _, writer = await greet(open_gate)
        writer.close()
    assert MAX_CONNECTIONS >= 2


async def test_bytes_over_the_limit_close_all_connections_and_are_recorded(internet: Internet) -> None:
    async with internet.proxy(max_bytes=1 << 20) as proxy, proxy.gate() as gate:
        _, reader, writer = await ask(gate, "site.example")
        writer.write(b"x" * (2 << 20))
        with suppress(ConnectionError):
            assert len(await reader.read()) <= 1 << 20
        writer.close()
        assert list(map(str, gate.blocked)) == ["the job's pages received more than 1 MiB (CPLANE_EGRESS_MAX_MB)"]
        dialled = len(internet.dialled)
        assert (await ask(gate, "site.example"))[0] == Reply.NOT_ALLOWED
        assert len(internet.dialled) == dialled
        assert len(gate.blocked) == 1


async def test_a_dial_is_cancelled_when_its_client_disconnects(internet: Internet) -> None:
    internet.names["silent.example"] = ["1.2.3.4"]
    internet.silent.add(("1.2.3.4", 443))
    async with internet.proxy() as proxy, proxy.gate() as gate:
        for _ in range(300):  # more than the limit of connections
            internet.waiting.clear()
            writer = await request(gate, "silent.example")
            await asyncio.wait_for(internet.waiting.wait(), 10)
            writer.transport.abort()
            await until_empty(gate)
        async with asyncio.timeout(10):
            while gate.dials:
                await asyncio.sleep(0.01)
        assert gate.failed == []


async def test_a_host_that_does_not_respond_is_recorded_even_if_dialling_exceeds_the_handshake_timeout(
    internet: Internet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(proxy, "CONNECT_TIMEOUT_S", 0.6)
    internet.names["silent.example"] = ["1.2.3.4"]
    internet.silent.add(("1.2.3.4", 443))
    async with internet.proxy() as open_proxy, open_proxy.gate() as open_gate:
        assert (await ask(open_gate, "silent.example"))[0] == Reply.HOST_UNREACHABLE
        assert [failed.host for failed in open_gate.failed] == ["silent.example"]


async def test_data_of_a_host_that_sends_first_and_closes_is_delivered(internet: Internet) -> None:
    async def farewell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye" * 1000)
        writer.close()

    async with internet.serve("bye.example", "1.1.1.3", 443, farewell), internet.proxy() as proxy, proxy.gate() as gate:
        for _ in range(50):
            code, reader, writer = await ask(gate, "bye.example")
            assert code == Reply.SUCCEEDED
            assert await asyncio.wait_for(reader.read(), 10) == b"bye" * 1000
            writer.close()
        await until_empty(gate)


async def test_closing_a_gate_closes_connections_and_cancels_dials(internet: Internet) -> None:
    internet.names["silent.example"] = ["1.2.3.4"]
    internet.silent.add(("1.2.3.4", 443))
    tasks = asyncio.all_tasks()
    async with internet.proxy() as proxy:
        async with proxy.gate() as gate:
            _, open_reader, _ = await ask(gate, "site.example")
            waiting_reader, waiting_writer = await greet(gate)
            waiting_writer.write(b"\x05\x01\x00\x03\x0esilent.example\x01\xbb")
            await asyncio.wait_for(internet.waiting.wait(), 10)
        assert await closed(open_reader)
        assert await closed(waiting_reader)
        await until_empty(gate)
        with pytest.raises(OSError):  # noqa: PT011  refused; the message is the system's
            await open_client(gate)
    assert {task for task in asyncio.all_tasks() if not task.done() and "dial" in task.get_name()} <= tasks


async def http_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An HTTP proxy that requires credentials, connects to nothing, and sends the target first."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    if "Proxy-Authorization: Basic bWU6c2VjcmV0" not in head:
        writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        writer.close()
        return
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + head.split()[1].encode())
    await writer.drain()
    await echo(reader, writer)


async def socks_proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same with SOCKS5."""
    methods = await reader.readexactly((await reader.readexactly(2))[1])
    if 2 not in methods:
        writer.write(b"\x05\xff")
        writer.close()
        return
    writer.write(b"\x05\x02")
    name = await reader.readexactly((await reader.readexactly(2))[1])
    secret = await reader.readexactly((await reader.readexactly(1))[0])
    writer.write(b"\x01" + (b"\x00" if (name, secret) == (b"me", b"secret") else b"\x01"))
    host = await reader.readexactly((await reader.readexactly(5))[4])
    port = int.from_bytes(await reader.readexactly(2), "big")
    writer.write(b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00" + f"{host.decode()}:{port}".encode())
    await writer.drain()
    await echo(reader, writer)


@pytest.mark.parametrize(("server", "handler"), [("http", http_proxy), ("socks5", socks_proxy)])
async def test_the_gate_connects_through_the_jobs_proxy(internet: Internet, server: str, handler: Handler) -> None:
    serving = internet.serve("proxy.example", "1.1.1.9", 3128, handler)
    async with serving, internet.proxy() as proxy:
        async with proxy.gate(Upstream.read(f"{server}://proxy.example:3128", "me", "secret")) as gate:
            code, reader, writer = await ask(gate, "site.example")
            assert code == Reply.SUCCEEDED
            assert await reader.readexactly(16) == b"site.example:443"
            writer.write(b"hi")
            assert await reader.readexactly(2) == b"hi"
            assert {address for address, _ in internet.dialled} == {"1.1.1.9"}
            assert (await ask(gate, "127.0.0.1"))[0] == Reply.NOT_ALLOWED
        async with proxy.gate(Upstream.read(f"{server}://proxy.example:3128", "me", "wrong")) as gate:
            assert (await ask(gate, "site.example"))[0] == Reply.HOST_UNREACHABLE
            assert "refused site.example:443" in str(gate.failed[0])
            assert "wrong" not in str(gate.failed[0])


async def test_a_name_that_only_the_jobs_proxy_resolves_is_allowed_at_web_ports(
    internet: Internet,
) -> None:
    refused = [("far.example", 25), ("localhost", 80), ("app.localhost", 443)]
    async with (
        internet.serve("proxy.example", "1.1.1.9", 3128, http_proxy),
        internet.proxy() as proxy,
        proxy.gate(Upstream.read("http://proxy.example:3128", "me", "secret")) as gate,
    ):
        assert (await ask(gate, "far.example", 443))[0] == Reply.SUCCEEDED
        for host, port in refused:
            assert (await ask(gate, host, port))[0] == Reply.NOT_ALLOWED
        assert [(blocked.host, blocked.port) for blocked in gate.blocked] == refused


async def test_a_proxy_in_the_private_network_is_refused(internet: Internet) -> None:
    async with internet.proxy() as proxy, proxy.gate(Upstream.read("http://10.0.0.1:3128")) as gate:
        assert (await ask(gate, "site.example"))[0] == Reply.NOT_ALLOWED
        assert gate.blocked[0].host == "10.0.0.1"
    async with (
        internet.proxy(EgressRules.read(["10.0.0.1:3128"])) as proxy,
        proxy.gate(Upstream.read("http://10.0.0.1:3128")) as gate,
    ):
        assert (await ask(gate, "site.example"))[0] == Reply.HOST_UNREACHABLE


@pytest.mark.parametrize("server", ["ftp://a", "http://", "socks4://a:1", "//"])
def test_invalid_proxy_addresses_are_refused(server: str) -> None:
    with pytest.raises(ValueError, match=r"a proxy is http://host:port or socks5://host:port"):
        Upstream.read(server)


def test_credentials_are_not_in_the_repr() -> None:
    assert "secret" not in repr(Upstream.read("http://a:1", "me", "secret"))
