"""Injected parameters come first and are no arguments of `submit`; calling the function still needs them."""

from typing import NotRequired, assert_type

import sqlalchemy.ext.asyncio
from playwright.async_api import BrowserContext, Page
from sqlmodel.ext.asyncio.session import AsyncSession
from typing_extensions import TypedDict, Unpack

from cplane import Artifact, Context, Handle, job


class Shot(TypedDict):
    path: str
    quality: NotRequired[int]


@job
async def one(page: Page, url: str) -> bytes:
    return url.encode()


@job
async def two(page: Page, ctx: Context, url: str, *, wait: bool = False) -> Artifact:
    return await ctx.artifact("a.png", url.encode())


@job(timeout=3)
async def three(page: Page, ctx: Context, session: AsyncSession, n: int) -> int:
    return n


@job(retries=1)
async def with_browser_context(browser: BrowserContext, /, n: int) -> int:
    return n


@job
async def with_plain_session(session: sqlalchemy.ext.asyncio.AsyncSession, n: int) -> int:
    return n


@job
def in_a_thread(ctx: Context, n: int) -> int:
    return n


@job
def in_a_thread_with_two(ctx: Context, session: AsyncSession, n: int) -> int:
    return n


@job()
async def only_injected(ctx: Context) -> str:
    return ctx.key


@job
async def unpacked(ctx: Context, n: int, **shot: Unpack[Shot]) -> dict[str, object]:
    return {**shot, "n": n}


async def submitting() -> None:
    assert_type(await one.submit("u"), Handle[bytes])
    assert_type(await one.submit(url="u"), Handle[bytes])
    assert_type(await two.submit("u", wait=True), Handle[Artifact])
    assert_type(await three.using(delay=1).submit(1), Handle[int])
    assert_type(await with_browser_context.submit(n=1), Handle[int])
    assert_type(await with_plain_session.submit(1), Handle[int])
    assert_type(await in_a_thread.submit(1), Handle[int])
    assert_type(await in_a_thread_with_two.submit(n=1), Handle[int])
    assert_type(await only_injected.submit(), Handle[str])
    assert_type(await unpacked.submit(1, path="p"), Handle[dict[str, object]])
    await unpacked.submit(1, path="p", quality=3)

    await one.submit(1)  # error
    await one.submit("u", "v")  # error
    await one.submit()  # error
    await two.submit("u", True)  # error
    await three.submit("1")  # error
    await three.submit(1, session=None)  # error
    await with_browser_context.submit("1")  # error
    await in_a_thread.submit("1")  # error
    await only_injected.submit("u")  # error
    await unpacked.submit(1)  # error
    await unpacked.submit(1, path="p", quality="high")  # error
    await unpacked.submit(1, path="p", depth=3)  # error


async def passing_injected_values(page: Page, ctx: Context) -> None:
    await one.submit(page, "u")  # error
    await one.submit(page=page, url="u")  # error
    await two.submit(page, ctx, "u")  # error
    await only_injected.submit(ctx)  # error


async def calling_directly(page: Page, ctx: Context, session: AsyncSession) -> None:
    assert_type(await one(page, "u"), bytes)
    assert_type(await two(page, ctx, "u", wait=True), Artifact)
    assert_type(await three(page, ctx, session, 1), int)
    assert_type(in_a_thread(ctx, 1), int)
    assert_type(await only_injected(ctx), str)
    await one("u")  # error
    await two(ctx, page, "u")  # error
    await three(page, ctx, 1)  # error
    in_a_thread(1)  # error
    await only_injected()  # error
