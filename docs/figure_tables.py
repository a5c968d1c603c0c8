"""Tables of docs/benchmarks.md, of the figures that each benchmark has written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


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


def rounds(results: Any) -> str:
    """Each workload's seconds, and FLSimulation's ratio to the loop."""
    heads = ["workload", "FLSimulation, s", "plain loop, s", "ratio", "rounds"]
    several = any("processes" in row for row in results)
    if several:
        heads[4:4] = ["in processes, s", "ratio to these"]
    return table(heads, [_round(row, several=several) for row in results])


def _round(row: dict[str, Any], *, several: bool) -> list[str]:
    """Cells of a workload; ``several`` if the loop in processes has columns."""
    medians = row["median-seconds"]
    cells = [
        f"{row['workload']}: {row['what']}",
        *(seconds(medians[side]) for side in ("flsimulation", "bare")),
        f"{row['median-ratio']:.2f}",
    ]
    if several and "processes" in row:
        cells += [seconds(medians["processes"]), f"{row['processes-ratio']:.2f}"]
    elif several:
        cells += ["", ""]
    return [*cells, f"{row['rounds']}"]


def peers(results: Any) -> str:
    """A table for each workload, with a row for each peer."""
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
    shown += f"; {row['unlike']}" if row.get("unlike") else ""
    return shown + (f"; {row['failed']} of its runs failed" if row["failed"] else "")


def engine(results: Any) -> str:
    """The ways to compute a cohort's steps."""
    return f"{results['workload']}, medians of {results['repeats']}:\n\n" + table(
        ("way", "seconds", "ratio"),
        [
            (row["way"], seconds(row["median-seconds"]), f"{row['ratio']:.2f}")
            for row in results["ways"]
        ],
    )


def overhead(results: Any) -> str:
    """Milliseconds of a round by its clients, and the linear fits."""
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


def command(results: Any) -> str:
    """The seconds of whole commands, and their memory."""
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


def network(results: Any) -> str:
    """The seconds of rounds on a network, by number of clients and side."""
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


def threads(results: Any) -> str:
    """The milliseconds of an epoch, by how threads wait."""
    return table(
        ("how they wait", "processes at once", "ms per epoch"),
        [(row["policy"], f"{row['processes']}", f"{row['median-ms']:.1f}") for row in results],
    )


def privacy(results: Any) -> str:
    """Accuracy, seconds and epsilon of private clients, beside those without privacy."""
    groups = [(f"{row['clients']:,}", f"{row['cohort']:,}") for row in results]
    return _private(("clients", "cohort"), groups, results)


def dpsgd(results: Any) -> str:
    """Accuracy, seconds and epsilon of DP-SGD, beside those without privacy."""
    return _private(("model",), [(row["model"],) for row in results], results)


def _private(heads: Sequence[str], groups: Sequence[Sequence[str]], results: Any) -> str:
    """A table whose first columns say what rows are compared."""
    others = (
        "epsilon",
        "noise multiplier",
        "epsilon by PLD",
        "accuracy",
        "s a round",
        "times none",
    )
    return table(
        (*heads, *others),
        (
            (
                *group,
                f"{row['epsilon']:g}" if row["epsilon"] else "none",
                f"{row['noise-multiplier']:.3f}" if row["epsilon"] else "",
                f"{row['epsilon-pld']:.2f}" if row["epsilon"] else "",
                f"{row['accuracy']:.3f}",
                seconds(row["round-seconds"]),
                f"{row['ratio']:.2f}",
            )
            for group, row in zip(groups, results, strict=True)
        ),
    )


def secagg(results: Any) -> str:
    """Seconds and bytes of secure aggregation, beside plain averaging."""
    heads = (
        *("where", "clients", "neighbours", "FedAvg, s", "secure, s", "more, s"),
        *("FedAvg, bytes", "secure, bytes", "apart"),
    )
    return table(
        heads,
        (
            (
                where,
                f"{row['clients']}",
                f"{row['neighbours']}",
                *(f"{row[f'{side}-seconds']:.2f}" for side in ("plain", "secure", "more")),
                *(f"{row[f'{side}-bytes-per-client']:,}" for side in ("plain", "secure")),
                f"{row['apart']:.1e}",
            )
            for where, rows in results.items()
            for row in rows
        ),
    )


def seconds(value: float) -> str:
    """To the millisecond, or to ten of them from a second on."""
    return f"{value:.3f}" if value < 1 else f"{value:.2f}"
