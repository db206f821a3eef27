"""CONTRIBUTING.md names files that exist, and the layers that are checked."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_it_names_is_there() -> None:
    named = re.findall(r"`((?:cplane|tests|benchmarks|examples)/[^`\s]*)`", CONTRIBUTING)
    existing = [path for path in named if "NAME" not in path and "NNNN" not in path]
    assert len(existing) > 30
    assert [path for path in existing if not (ROOT / path).exists()] == []


def test_its_table_has_the_layers_of_the_import_contract() -> None:
    rows = re.findall(r"^\| (`cplane/.*?) \|", CONTRIBUTING, re.MULTILINE)
    shown = [[name.removesuffix(".py") for name in re.findall(r"`cplane/(\w+(?:\.py)?)/?`", row)] for row in rows]
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    assert shown == [re.findall(r"\w+", layer) for layer in layers]
