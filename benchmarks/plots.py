"""Plots and a page from a saved run: `python benchmarks/plots.py RESULTS.json` writes docs/explanation/benchmarks.md and its plots."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as peers.py does

from benchmarks.suite.plots import write_report
from benchmarks.suite.results import load

DOCS = Path(__file__).resolve().parents[1] / "docs" / "explanation"

if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/plots.py RESULTS.json")
    for written in write_report(load(Path(sys.argv[1])), DOCS):
        print(written.name)
