"""Batches are split by size before they are sent, and in halves when they are refused."""

from collections.abc import Sequence

import pytest

from cplane.runtime.splitting import portions, send_halving


class Server:
    """Refuses every call with a negative number, and is unavailable for a call with a zero."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []

    async def send(self, numbers: Sequence[int]) -> list[str]:
        self.calls.append(list(numbers))
        if 0 in numbers:
            raise ConnectionError("unavailable")
        if refused := [number for number in numbers if number < 0]:
            raise ValueError(f"refused {refused}")
        return [str(number) for number in numbers]


async def test_one_refused_item_among_500_costs_18_calls_and_no_other_item() -> None:
    server, numbers = Server(), [*range(1, 301), -1, *range(301, 500)]
    replies = await send_halving(numbers, server.send, outages=(ConnectionError,))
    assert [reply for reply in replies if isinstance(reply, str)] == [str(number) for number in range(1, 500)]
    assert str(replies[300]) == "refused [-1]"
    assert len(server.calls) <= 19


@pytest.mark.parametrize("numbers", [[-1], [1], [-1, -2], [1, -2, 3, -4], [-1, 2, 3]])
async def test_each_item_has_its_own_reply_or_error(numbers: list[int]) -> None:
    replies = await send_halving(numbers, Server().send, outages=(ConnectionError,))
    assert [str(reply) for reply in replies] == [
        str(number) if number > 0 else f"refused [{number}]" for number in numbers
    ]


async def test_an_outage_splits_nothing_and_does_not_hide_what_was_sent_before_it() -> None:
    server = Server()
    replies = await send_halving([1, 0, 3], server.send, outages=(ConnectionError,))
    assert [str(reply) for reply in replies] == ["unavailable"] * 3
    assert len(server.calls) == 1

    class Failing(Server):
        async def send(self, numbers: Sequence[int]) -> list[str]:
            if len(self.calls) == 2:
                raise ConnectionError("gone")
            return await super().send(numbers)

    replies = await send_halving([1, 2, 3, -4], Failing().send, outages=(ConnectionError,))
    assert [str(reply) for reply in replies] == ["1", "2", "gone", "gone"]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([5], [[5]]),
        ([50], [[50]]),
        ([5, 5, 1], [[5, 5], [1]]),
        ([1, 50, 1, 1], [[1], [50], [1, 1]]),
        ([10, 10], [[10], [10]]),
        ([0] * 3, [[0] * 3]),
    ],
)
def test_a_portion_has_at_most_the_size_or_one_item(sizes: list[int], expected: list[list[int]]) -> None:
    assert list(portions(sizes, lambda size: size, 10)) == expected
