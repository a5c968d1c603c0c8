"""Reading an experiment: TOML file, then ``--set`` overrides, then one line for each mistake."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from flsimulation.errors import ExperimentError
from flsimulation.experiment.importing import script_in_progress
from flsimulation.experiment.spec import Experiment, Section, kebab
from flsimulation.experiment.suggest import remedy

_LARGEST = 16 * 2**20  # bytes of an experiment file
_REFERENCES = (
    *("data.dataset", "data.reader", "data.test", "data.transform", "data.evaluation-transform"),
    "model.class",
)
"""Keys whose value may hold a path."""


def load_experiment(path: str | Path | None = None, overrides: Iterable[str] = ()) -> Experiment:
    """Read and validate an experiment.

    Parameters
    ----------
    path : str or Path, optional
        TOML file; without it the default experiment, which ships with the package.
    overrides : iterable of str
        ``"train.epochs=2"``: dotted key and TOML value (a bare word is a string).

    Raises
    ------
    ExperimentError
        One line for each wrong key or value, naming file, key, value and remedy.
    """
    table = _read(path)
    source = str(path) if path is not None else "default experiment"
    resolve_paths(table, Path(path).parent if path is not None else Path())
    changed = _override(table, list(overrides))
    return experiment_of(table, source, changed)


def experiment_of(
    table: dict[str, Any], source: str, changed: dict[str, str] | None = None
) -> Experiment:
    """Validate an experiment's table; ``source`` and the overrides of ``changed`` keys are named.

    Raises
    ------
    ExperimentError
        As of `load_experiment`.
    """
    try:
        return Experiment.model_validate(table)
    except ValidationError as error:
        lines = [explain(item, source, Experiment, changed or {}) for item in error.errors()]
        raise ExperimentError("\n".join(lines)) from None


def dump_toml(experiment: Experiment) -> str:
    """The whole experiment, every key written out, as TOML."""
    return tomli_w.dumps(experiment.model_dump(by_alias=True))


def _read(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        text = resources.files(__package__).joinpath("default.toml").read_text(encoding="utf-8")
        return tomllib.loads(text)
    try:
        return tomllib.loads(_text(Path(path)))
    except RecursionError:
        raise ExperimentError(f"{path}: not valid TOML: its values are nested too deeply") from None
    except FileNotFoundError:
        raise ExperimentError(
            f"{path}: no such file; give the path of an experiment file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ExperimentError(f"{path}: cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ExperimentError(f"{path}: not valid TOML: {error}") from None


def _text(path: Path) -> str:
    """The content of a file that is no larger than an experiment can be."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ExperimentError(
            f"{path}: is larger than {_LARGEST / 2**20:g} MiB; give the path of an experiment file"
        )
    return content.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")


def resolve_paths(table: dict[str, Any], folder: Path) -> None:
    """Make a file's own relative paths absolute, so that the experiment means the same anywhere.

    Parameters
    ----------
    table : dict
        The experiment's keys as nested tables; changed.
    folder : Path
        Where the file is.
    """
    for section, key in (reference.split(".") for reference in _REFERENCES):
        part = table.get(section)
        if isinstance(part, dict) and isinstance(part.get(key), str):
            part[key] = _absolute(part[key], folder)


def _absolute(reference: str, folder: Path) -> str:
    """``file:PATH``, ``sites:PATH``, ``hf:./PATH`` and ``PATH.py:NAME`` with an absolute path.

    Others are returned as they are.

    ``__main__:NAME`` in a script is the script's path, which other processes can import.
    """
    kind, _, path = reference.partition(":")
    if kind in ("file", "sites") or (kind == "hf" and path.startswith(".")):
        return f"{kind}:{(folder / Path(path).expanduser()).resolve()}"
    source, _, name = reference.rpartition(":")
    if source == "__main__" and (script := script_in_progress()) is not None:
        return f"{script}:{name}"
    if not source.endswith(".py"):
        return reference
    return f"{(folder / Path(source).expanduser()).resolve()}:{name}"


def _override(table: dict[str, Any], overrides: list[str]) -> dict[str, str]:
    """Put the overrides into the table; give each by its key."""
    parsed = {override: _parse_override(override) for override in overrides}
    if any(key == "model.class" for key, _ in parsed.values()) and isinstance(
        model := table.get("model"), dict
    ):
        model.pop("args", None)  # the file's are another class's
    for override, (key, value) in parsed.items():
        if key in _REFERENCES and isinstance(value, str):
            value = _absolute(value, Path())
        _put(table, key, value, override)
    return {key: override for override, (key, _) in parsed.items()}


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise ExperimentError(
            f"--set {override}: write it as key=value, for example train.epochs=2"
        )
    try:
        return key, tomllib.loads(f"value = {text}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return key, text.strip()


def _put(table: dict[str, Any], key: str, value: Any, override: str) -> None:
    *sections, last = key.split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ExperimentError(f"--set {override}: {section} is a value, not a table of keys")
    table[last] = value


def explain(
    item: Any, source: str, model: type[Section], changed: dict[str, str] | None = None
) -> str:
    """One mistake in one line: file, key, value, remedy.

    Parameters
    ----------
    item : dict
        One of the errors of Pydantic's ``ValidationError``.
    source : str
        The file.
    model : type
        What the file was to hold.
    changed : dict, optional
        Overrides of the file's keys, by key.
    """
    key = ".".join(str(part) for part in item["loc"])
    message = item["msg"].removeprefix("Value error, ")
    got = item["input"]
    if item["type"] == "extra_forbidden":
        hint = remedy(str(item["loc"][-1]), _keys(item["loc"][:-1], model))
        text = f"{key} is not a key, got {got!r}{hint}"
    elif item["type"] == "missing":
        text = f"{key} is missing; add it"
    elif item["type"] == "value_error" and (key in ("strategy", "data") or not key):
        text = f"{key}.{message}" if key else message
    else:
        text = f"{key} {_must(message)}, got {got!r}"
    overrides = (changed or {}).items()
    override = next((o for k, o in overrides if key and (k == key or k in text)), None)
    return f"--set {override}: {text}" if override else f"{source}: {text}"


def _keys(location: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    """Keys that the section at ``location`` knows, as they are written."""
    for part in location:
        if isinstance(part, int):  # a place in a list, whose sections the key before it found
            continue
        field = next((f for n, f in model.model_fields.items() if kebab(n) == part), None)
        if field is None:  # a name in a table of tables, which the key before it found
            continue
        kinds = (field.annotation, *get_args(field.annotation))  # itself, a list's or an optional
        sections = [k for k in kinds if isinstance(k, type) and issubclass(k, Section)]
        if not sections:
            return []
        model = sections[0]
    return [kebab(name) for name in model.model_fields]


def _must(message: str) -> str:
    """Pydantic's "Input should be ..." as "must be ..."."""
    return re.sub(r"^(Input|String) should", "must", message)
