"""Objects of the user's own, named ``module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from flsimulation.errors import InputError, describe_error
from flsimulation.experiment.suggest import remedy


def import_object(reference: str, key: str, error: type[InputError] = InputError) -> Any:
    """Import what ``reference`` names.

    The working directory is searched for modules, and a file's own folder for the modules it
    imports, both after everything installed. A file that is named twice is executed once, as
    long as its text stays the same.

    Parameters
    ----------
    reference : str
        ``module:name`` or ``path/to/file.py:name``; the name may have dots.
    key : str
        The experiment's key that holds the reference, for the error's text.
    error : type, optional
        What to raise.

    Raises
    ------
    InputError
        As ``error``: if the module cannot be found or imported, or has no such name.
    """
    source, _, name = reference.rpartition(":")
    try:
        if not source or not name:
            raise _RefusalError("write it as module:name or path/to/file.py:name")
        module = _module_of_file(Path(source)) if source.endswith(".py") else _module(source)
        return _attribute(module, name)
    except _RefusalError as refusal:
        raise error(f"{key} {reference!r}: {refusal}") from refusal.__cause__


class _RefusalError(Exception):
    """Why there is no such object, without the key and the reference."""


def _module(name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(error) from error
        raise _RefusalError(
            f"no module named {error.name!r}; install it, or name a file as path/to/file.py:name"
        ) from None
    except (Exception, SystemExit) as error:
        raise _failure(error) from error


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise _RefusalError(f"there is no file {path}; name an existing Python file")
    # The text is part of the name: an edited file is read again, in a notebook too.
    digest = hashlib.sha256(str(path).encode() + b"\n" + path.read_bytes()).hexdigest()
    name = f"{path.stem}_{digest[:12]}"
    return sys.modules[name] if name in sys.modules else _execute(path, name)


def _execute(path: Path, name: str) -> ModuleType:
    _search(path.parent)
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise _RefusalError("it cannot be read as a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _failure(error) from error
        raise
    return module


def _attribute(module: ModuleType, name: str) -> Any:
    place: Any = module
    for part in name.split("."):
        if not hasattr(place, part):
            known = _own_names(place)
            owner = module.__file__ or module.__name__ if place is module else place.__name__
            raise _RefusalError(f"{owner} has no attribute {part!r}{remedy(part, known)}")
        place = getattr(place, part)
    return place


def _own_names(place: Any) -> list[str]:
    """What a module or a class defines itself, without what it imports, where there is such."""
    public = [name for name in dir(place) if not name.startswith("_")]
    home = getattr(place, "__module__", getattr(place, "__name__", None))
    own = [n for n in public if getattr(getattr(place, n, None), "__module__", None) == home]
    return own or public


def _failure(error: BaseException) -> _RefusalError:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "lightning":
        return _RefusalError(
            "it imports lightning, which is not installed; install it (pip install lightning), or "
            "import pytorch_lightning, which is: the same classes under another name"
        )
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _RefusalError(
            f"importing it raised {describe_error(error)}; install what has {error.name!r}, or name "
            f"a file in whose folder it is"
        )
    return _RefusalError(f"importing it raised {describe_error(error)}")


def _search(folder: Path) -> None:
    """Find modules in ``folder``, last, so that it hides nothing that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
