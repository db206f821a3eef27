"""The jobs of this process: the built-ins, and what CPLANE_IMPORTS names."""

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path

from cplane.errors import InvalidSettings
from cplane.jobs.decorator import Registry, registry

BUILT_INS = "cplane.tasks"


def load_jobs(imports: Iterable[str]) -> Registry:
    """Import the modules that define jobs; answers all jobs of the process.

    Raises:
        InvalidSettings: a module that does not exist; errors inside a module pass as they are.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.append(folder)  # last, as arq does: a stray json.py there must not hide the real one
    for name in (BUILT_INS, *imports):
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
            hint = "is CPLANE_IMPORTS right, and the folder on PYTHONPATH? modules are written a.b.c, comma between two"
            raise InvalidSettings(
                f"CPLANE_IMPORTS names '{name}', which cannot be found from {folder}", hint=hint
            ) from None
    return registry
