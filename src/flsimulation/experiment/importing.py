"""Objects of the user's own, named ``module:name`` or ``path/to/file.py:name``."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from flsimulation.errors import InputError, describe_error
from flsimulation.experiment.suggest import remedy

_MAIN = "__main__"
_GUARD = 'put the call of run() below `if __name__ == "__main__":`'
_is_importing: ContextVar[bool] = ContextVar("is_importing", default=False)
_cut_short: set[str] = set()  # names of modules that were executed up to a call of run()
_searched: set[str] = set()  # folders of the user's own, which were added to the search path
_gates: list[Callable[[str], str]] = []  # of this process, see `import_only`


def import_only(allowed: Callable[[str], str]) -> None:
    """From now on, import what ``allowed`` returns for a reference; it raises `InputError` if nothing."""
    _gates.append(allowed)


def import_object(reference: str, key: str, error: type[InputError] = InputError) -> Any:
    """Import what ``reference`` names.

    The working directory is searched for modules, and a file's own folder for the modules it
    imports, both after everything installed. A file that is named twice is executed once, as
    long as its text stays the same. The script that is being run is not executed again: its
    objects are used as they are. Another script's run does not start: the script is executed up
    to there, see `refuse_run_of_import`.

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
    try:
        source, _, name = _allowed(reference).rpartition(":")
        module = _module_of_file(Path(source)) if source.endswith(".py") else _module(source)
        return _attribute(module, name, is_main=source == _MAIN)
    except _RefusalError as refusal:
        raise error(f"{key} {reference!r}: {refusal}") from refusal.__cause__


def _allowed(reference: str) -> str:
    source, _, name = reference.rpartition(":")
    if not source or not name:
        raise _RefusalError("write it as module:name or path/to/file.py:name")
    for gate in _gates:
        try:
            reference = gate(reference)
        except InputError as why:
            raise _RefusalError(str(why)) from None
    return reference


def file_of(reference: str) -> Path | None:
    """The file here that ``path/to/file.py:name`` means; None if there is none that may be imported."""
    try:
        source = _allowed(reference).rpartition(":")[0]
    except _RefusalError:
        return None
    path = Path(source).expanduser()
    return path if source.endswith(".py") and path.is_file() else None


class RunOfImport(BaseException):
    """A script that an experiment imports calls ``run()`` while it is being imported.

    It is no `Exception`: a script that handles those still ends there.
    """


def refuse_run_of_import() -> None:
    """Raise `RunOfImport` if a run starts while a module is imported for an experiment.

    Without it, a script with a model and a call of ``run()`` would start its run again whenever
    another process imports the model.
    """
    if _is_importing.get():
        raise RunOfImport


class _RefusalError(Exception):
    """Why there is no such object, without the key and the reference."""


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    token = _is_importing.set(True)
    try:
        yield
    finally:
        _is_importing.reset(token)


def _module(name: str) -> ModuleType:
    _search(Path.cwd())
    try:
        if (script := _script_named(name)) is not None:
            return script
        with _importing():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise _failure(error) from error
        raise _RefusalError(
            f"no module named {error.name!r}; install it, or name a file as path/to/file.py:name"
        ) from None
    except RunOfImport:
        return _up_to_run(name)
    except (Exception, SystemExit) as error:
        raise _failure(error) from error


def _up_to_run(name: str) -> ModuleType:
    """A module that calls ``run()``, which Python dropped when the call was refused."""
    try:
        with _importing():
            spec = importlib.util.find_spec(name)
    except RunOfImport:
        raise _RefusalError(f"a package above it starts a run; {_GUARD}") from None
    return _execute(spec, name)


def _module_of_file(path: Path) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise _RefusalError(f"there is no file {path}; name an existing Python file")
    if script_in_progress() == path:
        return sys.modules[_MAIN]
    # The text is part of the name: an edited file is read again, in a notebook too.
    digest = hashlib.sha256(str(path).encode() + b"\n" + path.read_bytes()).hexdigest()
    name = f"{path.stem}_{digest[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    _search(path.parent)
    return _execute(importlib.util.spec_from_file_location(name, path), name)


def _execute(spec: ModuleSpec | None, name: str) -> ModuleType:
    if spec is None or spec.loader is None:
        raise _RefusalError("it cannot be read as a Python file")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    if spec.origin is not None:
        _prefer_neighbours_of(Path(spec.origin))
    try:
        with _importing():
            spec.loader.exec_module(module)
    except RunOfImport:
        _cut_short.add(name)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, (Exception, SystemExit)):
            raise _failure(error, Path(spec.origin or name)) from error
        raise
    return module


def script_in_progress() -> Path | None:
    """The file of the Python script that is being run; None in a notebook and in a command."""
    file = getattr(sys.modules[_MAIN], "__file__", None) or ""
    return Path(file).resolve() if file.endswith(".py") else None


def _script_named(name: str) -> ModuleType | None:
    """The script that is being run, if it is the module of this name."""
    main, script = sys.modules[_MAIN], script_in_progress()
    if name == _MAIN or (main.__spec__ is not None and main.__spec__.name == name):
        return main
    if script is None or script.stem != name.rpartition(".")[2] or name in sys.modules:
        return None
    spec = importlib.util.find_spec(name)
    is_script = spec is not None and spec.origin and Path(spec.origin).resolve() == script
    return main if is_script else None


def _attribute(module: ModuleType, name: str, *, is_main: bool) -> Any:
    place: Any = module
    for part in name.split("."):
        if not hasattr(place, part):
            if place is module and (reason := _not_yet(module, part, is_main)) is not None:
                raise _RefusalError(reason)
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


def _not_yet(module: ModuleType, name: str, is_main: bool) -> str | None:
    """Why a module may have a name only later, or only in another process."""
    if module.__name__ in _cut_short:
        return f"importing it starts a run before {name!r} is defined; {_GUARD}"
    if is_main:
        return (
            f"this program has not defined {name!r}; in a notebook, execute its cell first; for "
            f"other programs, put it into a file and name it as path/to/file.py:{name}"
        )
    if module is not sys.modules[_MAIN]:
        return None
    return f"the script in progress has not defined {name!r}; define it above the call of run()"


def _failure(error: BaseException, file: Path | None = None) -> _RefusalError:
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] == "lightning":
        return _RefusalError(
            "it imports lightning, which is not installed; install it (pip install lightning), or "
            "import pytorch_lightning, which is: the same classes under another name"
        )
    hidden = _hidden(error, file) if file is not None else ""
    if isinstance(error, ModuleNotFoundError) and error.name and not hidden:
        hidden = f"; install what has {error.name!r}, or name a file in whose folder it is"
    return _RefusalError(f"importing it raised {describe_error(error)}{hidden}")


def _hidden(error: BaseException, importer: Path) -> str:
    """The remedy where a file beside the importer has the name of an installed module, which was used."""
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        name = error.obj.__name__
    elif isinstance(error, ImportError):
        name = error.name or ""
    else:
        return ""
    file = importer.with_name(f"{name.partition('.')[0]}.py")
    used = sys.modules.get(file.stem)
    if file == importer or used is None or not file.is_file():
        return ""
    if getattr(used, "__file__", None) == str(file):
        return ""
    return f"; {file} is hidden by the installed module {file.stem!r}: rename it"


def _search(folder: Path) -> None:
    """Find modules in ``folder``, last, so that it hides nothing that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        _searched.add(str(folder))


def _prefer_neighbours_of(file: Path) -> None:
    """Let a file import the modules beside it, not those of the same names beside another file.

    In a notebook, experiments of several folders may each have a ``data.py``.
    """
    own, others = str(file.parent), _searched - {str(file.parent)}
    if own in _searched and own in sys.path:
        sys.path.remove(own)
        first = next((i for i, folder in enumerate(sys.path) if folder in others), len(sys.path))
        sys.path.insert(first, own)
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        is_others = origin and name != _MAIN and str(Path(origin).parent) in others
        if is_others and file.with_name(f"{name}.py").is_file():
            del sys.modules[name]
