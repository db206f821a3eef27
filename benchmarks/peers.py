"""cplane compared with seven other task frameworks, in one run on this machine: `python benchmarks/peers.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that the suite is found from any working directory

from benchmarks.suite.cli import app

if __name__ == "__main__":
    app()
