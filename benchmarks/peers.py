"""cplane beside seven other task frameworks, on this machine, in one run: `python benchmarks/peers.py --help`."""

import sys
from pathlib import Path

sys.path.insert(
    0, str(Path(__file__).resolve().parents[1])
)  # the suite is found from whatever folder this is started in

from benchmarks.suite.cli import app

if __name__ == "__main__":
    app()
