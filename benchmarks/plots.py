"""Plots and a page from a saved run: `python benchmarks/plots.py RESULTS.json` writes docs/benchmarks.md and docs/benchmarks-*.svg."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as peers.py does

from benchmarks.suite.plots import write_report
from benchmarks.suite.results import load

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/plots.py RESULTS.json")
    for written in write_report(load(Path(sys.argv[1])), Path(__file__).resolve().parents[1] / "docs"):
        print(written.name)
