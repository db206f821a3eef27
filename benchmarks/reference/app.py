"""The usual implementation: a FastAPI endpoint that commits one row per request and notifies workers by a Redis stream.

The benchmark runs it under uvicorn with uvloop and httptools: one process, a pool of 32 connections, JSON by FastAPI.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from fastapi import FastAPI
from redis.asyncio import Redis
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Column, DateTime, Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

DATABASE_URL = os.environ["BENCH_DATABASE_URL"].replace("postgresql://", "postgresql+asyncpg://", 1)
engine = create_async_engine(DATABASE_URL, pool_size=32, max_overflow=0)
redis = Redis.from_url(os.environ["BENCH_REDIS_URL"])


class Job(SQLModel, table=True):
    """A submitted job."""

    id: UUID = Field(default_factory=uuid4, primary_key=True)
    job: str
    args: dict[str, Any] = Field(sa_column=Column(JSONB, nullable=False))
    state: str = "queued"
    created_at: datetime = Field(
        default_factory=lambda: datetime.now(UTC), sa_column=Column(DateTime(timezone=True), nullable=False)
    )


class Submission(SQLModel):
    """The body of a request."""

    job: str
    args: dict[str, Any] = {}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(SQLModel.metadata.create_all)
    yield
    await redis.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/api/v1/jobs", status_code=202)
async def submit(submission: Submission) -> Job:
    job = Job(job=submission.job, args=submission.args)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        session.add(job)
        await session.commit()
    await redis.xadd("jobs", {"id": str(job.id), "job": job.job})
    return job
