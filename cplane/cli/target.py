"""The target of `cplane dev`: a file or a module whose jobs are imported."""

import sys
from pathlib import Path

from cplane.errors import InvalidSettings


def module_of(target: str) -> str:
    """Return the name of the module to import.

    The folder of a file is added to `sys.path`, so that `app.py` is the module `app` in every process.

    Raises:
        InvalidSettings: there is no such file, or its name cannot be the name of a module.
    """
    path = Path(target)
    if path.suffix != ".py" and path.name == target:
        return target
    if not path.is_file():
        raise InvalidSettings(f"there is no file {target}", hint="name a Python file or a module: cplane dev app.py")
    if not path.stem.isidentifier():
        raise InvalidSettings(f"{path.name} cannot be imported", hint="rename it: letters, digits and _")
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if path.stem in sys.stdlib_module_names:
        raise InvalidSettings(f"{path.name} hides Python's own module '{path.stem}'", hint="rename it")
    return path.stem
