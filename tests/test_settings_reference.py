"""docs/reference/settings.md is what docs/generate_settings.py makes of the settings."""

import runpy
from pathlib import Path
from typing import Any

from cplane.settings import CplaneSettings

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "reference" / "settings.md").read_text()


def generator() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "generate_settings.py"))


def test_the_page_is_generated_from_the_settings() -> None:
    assert generator()["page"]() == PAGE, "run `python docs/generate_settings.py`"


def test_the_page_describes_every_setting() -> None:
    for name, field in CplaneSettings.model_fields.items():
        assert f"| `CPLANE_{name.upper()}` |" in PAGE
        assert field.description
        assert field.description.endswith(".")
