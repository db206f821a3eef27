"""Startup times: `cplane --help`, and `cplane dev` until /readyz returns 200. `python benchmarks/startup.py`."""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 5
DEADLINE_S = 60.0
PORT = 8765
COMMAND = (sys.executable, "-m", "cplane")


async def help_s() -> float:
    """Return the seconds that `cplane --help` takes."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(*COMMAND, "--help", stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    return time.perf_counter() - began


async def dev_s(folder: Path) -> float:
    """Return the seconds until a `cplane dev` in `folder` is ready, and stop it."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "dev", "--port", str(PORT), cwd=folder, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not await is_ready():
                await asyncio.sleep(0.01)
        return time.perf_counter() - began
    finally:
        process.terminate()
        await process.wait()


async def is_ready() -> bool:
    """Return whether /readyz returns 200."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    except OSError:
        return False
    writer.write(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
    status = await reader.readline()
    writer.close()
    return b" 200 " in status


async def main() -> None:
    """Measure and print. The first round of each is a warm-up."""
    helps = [await help_s() for _ in range(ROUNDS + 1)][1:]
    with tempfile.TemporaryDirectory() as folder:
        cold_s, *warm = [await dev_s(Path(folder)) for _ in range(ROUNDS + 1)]
    rows = [("cplane --help", helps, 0.5), ("cplane dev, warm", warm, 3.0)]
    for name, seconds, limit_s in rows:
        print(
            f"{name:18} median {statistics.median(seconds):.2f} s  worst {max(seconds):.2f} s  required {limit_s:g} s"
        )
    print(f"{'cplane dev, first':18} {cold_s:.2f} s, with new servers")


if __name__ == "__main__":
    asyncio.run(main())
