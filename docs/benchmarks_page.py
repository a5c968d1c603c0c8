"""docs/benchmarks.md: the figures of benchmarks/results, each with its command and its machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

HEAD = """\
# Benchmarks

Each table is followed by its command, the date and the machine. `make bench-all` runs all benchmarks again,
which takes hours, and `make docs` then writes this page. A machine's speed varies with its load, and the
ratios vary a little, too.
"""


@dataclass(frozen=True)
class Section:
    """A section: heading, method, figures of ``benchmarks/results/<name>.json``, conclusions."""

    name: str
    title: str
    before: str
    figures: Callable[[Any], str]
    after: str = ""

    def text(self, folder: Path) -> str:
        """The section; without figures it says how to measure them."""
        path = folder / f"{self.name}.json"
        if path.is_file():
            record = json.loads(path.read_text(encoding="utf-8"))
            figures = f"{self.figures(record['results'])}\n{source(record)}\n"
        else:
            figures = (
                f"No figures are kept; `python benchmarks/{self.name}.py --json "
                f"benchmarks/results/{self.name}.json` measures them.\n"
            )
        return "\n".join(filter(None, (f"## {self.title}\n", self.before, figures, self.after)))


def source(record: dict[str, Any]) -> str:
    """The command, the day and the machine of a results file, as a sentence."""
    machine = record["machine"]
    memory = machine.get("memory-bytes")
    parts = [
        machine["processor"],
        f"{machine['cores']} cores",
        machine.get("gpu"),
        memory and f"{memory / 2**30:.0f} GiB",
        machine.get("system"),
        "python" in machine and f"Python {machine['python']}",
        "torch" in machine and f"PyTorch {machine['torch']}",
    ]
    return f"`{record['command']}`, {record['date']}; {', '.join(filter(None, parts))}."


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown; columns after the first whose cells are numbers stand to the right."""
    lines = [list(row) for row in rows]
    right = [
        bool(lines)
        and all(row[column].replace(".", "", 1).isdigit() or not row[column] for row in lines)
        for column in range(len(heads))
    ]
    rule = ["---:" if column and number else "---" for column, number in enumerate(right)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, rule, *lines))


def _rounds(results: Any) -> str:
    return table(
        ("workload", "FLSimulation, s", "plain loop, s", "ratio", "rounds"),
        [
            (
                f"{row['workload']}: {row['what']}",
                seconds(row["median-seconds"]["flsimulation"]),
                seconds(row["median-seconds"]["bare"]),
                f"{row['median-ratio']:.2f}",
                f"{row['rounds']}",
            )
            for row in results
        ],
    )


def _peers(results: Any) -> str:
    parts = []
    for workload in dict.fromkeys(row["workload"] for row in results):
        rows = [row for row in results if row["workload"] == workload]
        heads = ("", "round, s", "least, s", "ratio to bare", "command, s", "peak, MiB", "accuracy")
        cells = [
            (
                _peer(row),
                seconds(row["median-seconds"]),
                seconds(row["least-seconds"]),
                "" if row["ratio"] is None else f"{row['ratio']:.2f}",
                f"{row['command-seconds']:.1f}",
                f"{row['peak-bytes'] / 2**20:.0f}",
                f"{row['accuracy']:.3f}",
            )
            for row in rows
        ]
        number = f"runs of {rows[0]['rounds']} rounds, {rows[0]['repeats']} of each peer"
        parts.append(f"{workload}, {number}:\n\n{table((workload, *heads[1:]), cells)}")
    return "\n".join(parts)


def _peer(row: dict[str, Any]) -> str:
    versions = {name: text for name, text in row["versions"].items() if name != "torch"}
    shown = row["peer"]
    if versions and row["peer"] != "flsimulation":
        shown += f" ({', '.join(f'{name} {text}' for name, text in versions.items())})"
    shown += f"; **other work: {row['odd']}**" if row["odd"] else ""
    return shown + (f"; {row['failed']} of its runs failed" if row["failed"] else "")


def _engine(results: Any) -> str:
    return f"{results['workload']}, medians of {results['repeats']}:\n\n" + table(
        ("way", "seconds", "ratio"),
        [
            (row["way"], seconds(row["median-seconds"]), f"{row['ratio']:.2f}")
            for row in results["ways"]
        ],
    )


def _overhead(results: Any) -> str:
    median, least = (results[name]["seconds"] for name in ("median", "least"))
    rows = [
        (cohort, f"{1e3 * median[cohort]:.2f}", f"{1e3 * least[cohort]:.2f}") for cohort in median
    ]
    lines = " and ".join(
        f"{1e3 * results[name]['round']:.2f} ms per round and {1e6 * results[name]['client']:.0f} µs "
        f"per client ({name})"
        for name in ("median", "least")
    )
    heads = ("clients per round", "ms per round", "least, ms")
    return table(heads, rows) + f"\nLinear fits: {lines}.\n"


def _command(results: Any) -> str:
    return table(
        ("run", "command, s", "first round after, s", "start-up, s", "round, s", "peak, MiB"),
        [
            (
                row["run"],
                f"{row['median']['command']:.1f}",
                f"{row['median']['first-round']:.1f}" if "first-round" in row["median"] else "-",
                f"{row['median']['start-up']:.1f}" if "start-up" in row["median"] else "-",
                seconds(row["median"]["round"]) if "round" in row["median"] else "-",
                f"{row['median']['peak-bytes'] / 2**20:.0f}" if "round" in row["median"] else "-",
            )
            for row in results
        ],
    )


def _network(results: Any) -> str:
    return table(
        ("clients", "side", "rounds", "round, s", "training, s", "overhead, s"),
        [
            (
                f"{row['clients']}",
                row["side"],
                f"{len(row['rounds'])}",
                *(f"{row['median'][key]:.2f}" for key in ("round", "training", "overhead")),
            )
            for row in results
        ],
    )


def _threads(results: Any) -> str:
    return table(
        ("how they wait", "processes at once", "ms per epoch"),
        [(row["policy"], f"{row['processes']}", f"{row['median-ms']:.1f}") for row in results],
    )


def seconds(value: float) -> str:
    """To the millisecond, or to ten of them from a second on."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"


SECTIONS = (
    Section(
        "rounds",
        "Seconds per round, compared with a plain PyTorch loop",
        """\
```console
$ make bench
```

A plain loop trains client after client on one thread, and averages and evaluates itself: the same steps on the
same batches from the same weights (the command stops if the models differ). Rounds of both alternate in one
process. FLSimulation writes its run directory and uses both cores. Medians without the first two rounds:
""",
        _rounds,
        """\
W1 evaluates after every round, the others after every fifth. [Decision 12](decisions/0012-stacked-programs.md) explains the difference. With `--engine sequential`, clients
are trained one by one, as if [a model cannot be stacked](own-model.md#trained-with-many-others).
""",
    ),
    Section(
        "peers",
        "Comparison with other simulators",
        """\
`python benchmarks/peers.py` runs W1 and W2 in a plain PyTorch loop (`bare`), in `flsim run` with its evaluation, logs
and run directory, and in other simulators of federated learning: Flower's simulation on Ray with a plain
PyTorch client and with a Lightning Trainer in the client, pfl-research, fluke and FedLab. Each is used as
its documentation recommends, in a separate environment with the versions of
[`benchmarks/peers`](../benchmarks/peers), and with settings for this number of cores, which are in the script
of each. The model, the optimizer, the examples per client, the batches and the clients per round are the same,
and so is the number of optimizer steps, which is counted.

The simulators alternate. A round is measured inside the program, from the start of local training to the end of
aggregation, and of the central evaluation if there is one; the first two are omitted. The command is
the whole program, imports included, and the peak is the memory of all its processes together. The
accuracy is that of the last model: it shows that the work was done.
""",
        _peers,
    ),
    Section(
        "engine",
        "Ways to compute many clients' steps",
        """\
`python benchmarks/engine.py` computes a workload's steps for one cohort in several ways, alternating: client after
client, stacked by vmap and autograd, and as the traced program, replayed by Python or by TorchScript, with
SGD's steps outside or inside.
""",
        _engine,
        """\
Both ways to replay are faster with a thread on each core, although Python's holds the interpreter lock between
operations.
""",
    ),
    Section(
        "overhead",
        "Overhead of a round",
        """\
`python benchmarks/overhead.py` runs rounds of FedAvg with clients that return the model at once, with
messages, events and the run directory, for cohorts of several sizes.
""",
        _overhead,
    ),
    Section(
        "command",
        "The whole command",
        """\
`python benchmarks/command.py` runs the command `flsim run` for the default experiment, W1, W2 and for populations of
a thousand and of a million clients (`1k`, `1M`: 100 per round; `10k cohort`: 10,000 per round), and measures the
seconds of the command, until its first round, of its start-up (the command less the run) and of a round, and the
largest memory. In turn with them it runs a program that only imports PyTorch.
""",
        _command,
    ),
    Section(
        "network",
        "A round on a network",
        """\
`python benchmarks/network.py` runs the default model on 2 and on 10 clients, behind a SuperLink on this
machine, once with the containers' own programs (`flsim superlink`, `flsim client`, `flsim run --runtime
network`) and once with stock Flower 1.42 (`flower-superlink`, `flower-supernode`, `FedAvg.start`) and the
same ClientApp. All clients together hold 5,000 images; every round trains all clients for an epoch and
evaluates the new model on them. The overhead is the time of a round minus that of the training itself: minus the
longest training, or, if the clients share too few cores, minus the total divided by the cores. Medians
without the first round:
""",
        _network,
        """\
Most of stock Flower's time is sleep and imports: a SuperNode requests a message every 3 s, a part that is not
available yet is requested again after at least 1 s, and every message starts a process that imports PyTorch
([decision 9](decisions/0009-warm-processes.md), [10](decisions/0010-shorter-waits.md),
[11](decisions/0011-few-messages.md)). With many clients on two cores, the requests to the SuperLink take most of the time.
""",
    ),
    Section(
        "threads",
        "Waiting threads",
        """\
`python benchmarks/threads.py` compares how PyTorch's threads wait, with one and with two processes;
[decision 4](decisions/0004-waiting-threads.md) has the figures on which it is based.
""",
        _threads,
    ),
)


def benchmarks_page(folder: Path = RESULTS) -> str:
    """Text of docs/benchmarks.md, of the results in ``folder``."""
    return "\n".join((HEAD, *(section.text(folder) for section in SECTIONS)))
