"""cplane's pages, plain Playwright, crawlee's pool and a browser a visit, compared: `python benchmarks/browsers.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as peers.py does

from benchmarks.pages.cli import app

if __name__ == "__main__":
    app()
