"""Write docs/experiment.md and docs/metrics.md from the code that they describe, docs/benchmarks.md
from the figures of benchmarks/results.

``python docs/generate.py`` writes them; with ``--check`` it only says whether they are current.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen
from benchmarks_page import benchmarks_page
from fidelity_page import fidelity_page
from pydantic.fields import FieldInfo

from flsimulation.errors import FAILURE_REASONS
from flsimulation.experiment.spec import Experiment, Section
from flsimulation.experiment.strategy import STRATEGIES, own_parameters
from flsimulation.metrics import table

DOCS = Path(__file__).parent
NOTICE = "<!-- Made by docs/generate.py; change the code it reads, then run `make docs`. -->"

KINDS = {int: "integer", float: "number", bool: "true or false", str: "text", dict: "table"}
BOUNDS: dict[type, tuple[str, str]] = {
    Ge: ("ge", "≥"),
    Gt: ("gt", ">"),
    Le: ("le", "≤"),
    Lt: ("lt", "<"),
}

PROCESS_METRICS = (
    ("process_cpu_seconds_total", "counter", "seconds", "CPU time of the process, user and system."),
    ("process_resident_memory_bytes", "gauge", "bytes", "Memory that the process has in RAM."),
    ("process_virtual_memory_bytes", "gauge", "bytes", "Address space of the process."),
    ("process_start_time_seconds", "gauge", "seconds", "When the process started, Unix time."),
    ("process_open_fds", "gauge", "files", "Open file descriptors."),
    ("process_max_fds", "gauge", "files", "The most file descriptors that may be open."),
)  # fmt: skip
"""What prometheus_client's ProcessCollector adds on Linux; tests/test_docs.py compares the names."""

EXPERIMENT_HEAD = """\
# The experiment file

An experiment file is a TOML file. Every key has a default, so an empty file is a valid
experiment. A key that does not exist, or a value of the wrong type or range, is refused with one
line that names the file, the key and the value, and the exit status is 2.

`flsim run` without a file runs the default experiment, `experiments/default.toml`. It sets a few
keys to other values than the defaults below, for example `data.examples-per-client = 5000`.

`--set KEY=VALUE` changes a key for one run and may be given several times. The key has dots
(`train.epochs`). The value is TOML; a bare word is taken as text, so `--set data.partition=shards`
needs no quotes. All other keys stay as the file has them: `--set strategy.name=fedavg` on a file
that also gives `proximal-mu` is refused, because `fedavg` has no such parameter. The exception is
`--set model.class=...`, which drops the file's `model.args`.

A relative path in a file (`file:PATH`, `path/to/file.py:Name`) starts at the folder of that
file. A relative path in `--set` starts at the working directory.

The file `experiment.toml` of a [run directory](run-directory.md) holds every key of that run.
"""

STRATEGIES_HEAD = """\
## Strategies

`strategy.name` names a class of `flwr.serverapp.strategy`, which is used unmodified. Its own
parameters stand under `[strategy]` too, in kebab-case. Their names, types and defaults are those
of Flower's constructors, and the meanings are Flower's words.

```toml
[strategy]
name = "fedprox"
proximal-mu = 0.1
```

"""

STRATEGIES_FOOT = """\
What to know about some of them:

- `fedprox`: the clients add the proximal term to the gradients, so the model's own
  `training_step` stays as it is.
- `fedadam`, `fedadagrad`, `fedyogi`: `eta` is the server's learning rate. The clients train with
  the learning rate of the model (`model.args`), whatever `eta-l` says.
- `qfedavg`: `client-learning-rate` must be given, and should be the learning rate that the model
  trains with. The model's state must hold floating-point numbers only; the counters of batch
  normalisation are integers, so a model with it is refused in the first round. A client is weighted
  by its mean loss over the last local epoch. The paper's is the loss of the global model before the
  client trains; with one step on all of a client's examples the two are the same.
- `krum`, `multikrum`, `bulyan`: `num-malicious-nodes` is the number of clients that the strategy
  defends against. `bulyan` needs at least 4 times as many clients a round, and 3 more.
- Flower's constructors ask for two clients at least. Here `min-train-nodes` and
  `min-evaluate-nodes` are 1 by default.
"""

METRICS_HEAD = """\
# Metrics

In one process, `flsim run --metrics-port 9100` serves the server's and the clients' metrics at
`http://127.0.0.1:9100/metrics` in Prometheus's text format, as long as the run goes on. The
endpoint ends with the run. Counters count from the start of the process; a resumed run starts
them at 0 again.

On a [network](network.md) each container serves its own at port 8000, from a process that stays
when Flower's own processes come and go: the SuperLink's container the server's metrics, each
client's container that client's, and both the container's. The last values are still there after
a run. In the next one counters go on counting; the gauges of `fl_run_`, `fl_last_round_`,
`fl_global_` and the clients' begin anew.

"""


def experiment_page() -> str:
    """Text of docs/experiment.md."""
    own = {n: f for n, f in Experiment.model_fields.items() if not _is_section(f)}
    parts = [f"{NOTICE}\n\n{EXPERIMENT_HEAD}", "## Top level\n\n" + _fields_table(own)]
    for name, field in Experiment.model_fields.items():
        if _is_section(field):
            section: type[Section] = field.annotation  # type: ignore[assignment]
            text = " ".join((section.__doc__ or "").split())
            parts.append(f"## {name}\n\n{text}\n\n{_fields_table(section.model_fields)}")
    parts.append(STRATEGIES_HEAD + _strategies_table() + "\n" + STRATEGIES_FOOT)
    return "\n".join(parts)


def _rows(part: Iterable[table.Metric]) -> list[tuple[str, ...]]:
    return [(f"`{m.name}`", m.kind, m.unit, _codes(m.labels), m.help) for m in part]


def metrics_page() -> str:
    """Text of docs/metrics.md."""
    parts = (
        ("The server", table.SERVER_METRICS),
        ("The clients", table.CLIENT_METRICS),
        ("A client's container, on a network", table.NODE_METRICS),
        ("Every container, on a network", (*table.CONTAINER_METRICS, table.HEALTH_METRIC)),
    )
    process = [(f"`{name}`", kind, unit, text) for name, kind, unit, text in PROCESS_METRICS]
    buckets = ", ".join(f"{bound:g}" for bound in table.SECONDS)
    return (
        f"{NOTICE}\n\n{METRICS_HEAD}"
        + "\n".join(
            f"## {title}\n\n" + _table(("Metric", "Type", "Unit", "Labels", "Meaning"), _rows(part))
            for title, part in parts
        )
        + "\nLabels:\n\n"
        + f"- `state` is one of {_codes(table.STATES)}.\n"
        + "- `phase` is `train`, `aggregate` or `evaluate`.\n"
        + "- `source` is `central` (the test set) or `federated` (the clients' held-out parts).\n"
        + f"- `reason` is one of {_codes(FAILURE_REASONS)}; see\n"
        + "  [failures](concepts.md#failures-and-deadlines).\n"
        + "- `direction` is `down` (server to clients) or `up`.\n"
        + "- `partition` is the client's partition, from 0. With more than "
        + f"{table.LABELLED_CLIENTS} clients in one process there\n  are no series by partition.\n"
        + f"\nUpper bounds of a histogram's buckets, in seconds:\n{buckets}, +Inf.\n"
        + "A histogram has the series `_bucket`, `_sum` and `_count`. Counters and histograms also have\n"
        + "a series `_created`, when they began, as Unix time in seconds.\n"
        + "\n## The process\n\n"
        + "From Prometheus's own collector, on Linux. In this runtime the server and all clients are\n"
        + "one process.\n\n"
        + _table(("Metric", "Type", "Unit", "Meaning"), process)
    )


def figures_page() -> str:
    """Text of docs/benchmarks.md."""
    return f"{NOTICE}\n\n{benchmarks_page()}"


def papers_page() -> str:
    """Text of docs/fidelity.md."""
    return f"{NOTICE}\n\n{fidelity_page()}"


PAGES: dict[str, Callable[[], str]] = {
    "experiment.md": experiment_page,
    "metrics.md": metrics_page,
    "benchmarks.md": figures_page,
    "fidelity.md": papers_page,
}


def main(arguments: Sequence[str] | None = None, folder: Path = DOCS) -> int:
    """Write the pages into ``folder``, or check them; give the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if not current")
    check = parser.parse_args(arguments).check
    pages = {folder / name: page() for name, page in PAGES.items()}
    if not check:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [path.name for path, text in pages.items() if not _holds(path, text)]
    if stale:
        print(f"docs: not current: {', '.join(stale)}; run make docs", file=sys.stderr)
    return 1 if stale else 0


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Section)


def _fields_table(fields: dict[str, FieldInfo]) -> str:
    rows = [
        (f"`{field.alias}`", _kind(field), _literal(field.default), field.description or "")
        for field in fields.values()
    ]
    return _table(("Key", "Type", "Default", "Meaning"), rows)


def _kind(field: FieldInfo) -> str:
    """Type and range in words: ``integer ≥ 1``."""
    if get_origin(field.annotation) is Literal:
        return f"one of {_codes(get_args(field.annotation))}"
    bounds = [
        f"{sign} {_number(getattr(bound, name))}"
        for bound in field.metadata
        for kind, (name, sign) in BOUNDS.items()
        if isinstance(bound, kind)
    ]
    lengths = [
        f"of at most {bound.max_length} characters"
        for bound in field.metadata
        if isinstance(bound, MaxLen)
    ]
    word = KINDS[get_origin(field.annotation) or field.annotation]  # type: ignore[index]
    return " ".join(part for part in (word, " and ".join(bounds), *lengths) if part)


def _number(value: Any) -> str:
    large = isinstance(value, int) and value > 2**31 and value.bit_count() == 1
    return f"2^{value.bit_length() - 1}" if large else f"{value}"


def _literal(value: Any) -> str:
    """Give a default as TOML; JSON writes these values the same way."""
    return f"`{json.dumps(value)}`"


def _strategies_table() -> str:
    rows = []
    for name, class_name in STRATEGIES.items():
        described = _docstring(class_name)
        source = re.search(r"https://arxiv\.org/\S+\d\w*", described)
        flower = f"`{class_name}`" + (f" ([paper]({source.group()}))" if source else "")
        parameters = own_parameters(name)
        for key, parameter in parameters.items():
            kind = f"{KINDS[parameter.annotation]} ≥ 0"
            required = parameter.default is inspect.Parameter.empty
            default = "required" if required else _literal(parameter.default)
            text = _meaning(described, parameter.name)
            rows.append((f"`{name}`", flower, f"`{key}`", kind, default, text))
        if not parameters:
            rows.append((f"`{name}`", flower, "none", "", "", ""))
    heads = ("Name", "Flower's class", "Own parameter", "Type", "Default", "Meaning")
    return _table(heads, _blank_repeats(rows))


def _blank_repeats(rows: Iterable[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Leave out name and class where they are those of the row above."""
    shown: list[tuple[str, ...]] = []
    above = ""
    for row in rows:
        shown.append(("", "", *row[2:]) if row[0] == above else row)
        above = row[0]
    return shown


def _docstring(class_name: str) -> str:
    from flwr.serverapp import strategy as flower

    return inspect.getdoc(getattr(flower, class_name)) or ""


def _meaning(docstring: str, parameter: str) -> str:
    """Give the first sentence that a NumPy docstring has on a parameter, or nothing."""
    found = re.search(rf"^{parameter} ?:.*\n((?:    .*\n?)+)", docstring, re.MULTILINE)
    text = " ".join(found.group(1).split()) if found else ""
    return re.split(r"(?<=[^\d]\.) ", text)[0]


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    cells = ([" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


if __name__ == "__main__":
    sys.exit(main())
