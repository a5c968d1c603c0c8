"""docs/fidelity.md: published figures beside ours, from the files that ``flsim paper --json`` wrote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flsimulation.studies.papers import HEADS, cells, names

FOLDER = Path(__file__).parent / "fidelity"
PAPERS = Path(__file__).parent.parent / "experiments" / "papers"

HEAD = """\
# Fidelity to the papers

What papers report, and what FLSimulation gives for the same experiment. The settings of each paper stand
in [`experiments/papers`](../experiments/papers), with the data and models of its own; they are not in the
package. In the repository one command runs a paper's rows and prints these tables:

```console
$ flsim paper mcmahan2017 --minutes 30
```

It runs what fits in the time; the same command again goes on from there. `--rows` takes some rows only,
`--seeds 3` runs each row with three seeds, `--json` keeps the figures, and `flsim paper` alone lists the
papers. A file of your own in the same form is run by its path: an experiment for all rows, the keys in
which each differs, and its published figures by measure. Measures are `rounds` (to
`evaluate.target-accuracy`), `accuracy` and `test-NAME` (scores on the test set, means of the `last`
rounds), `accuracy@N` (after round N), and `clients-mean`, `clients-worst`, `clients-best` and
`clients-variance` (of the clients' accuracies under the final model).

Where a paper tuned a key, most often the clients' learning rate, it is tuned here on the same kind of
grid: from a first value to its neighbours on either side and on while that is better, with seed 0. The
other seeds take the value found. A rate is given up after as many rounds as the best before it took, which
changes no result. Rounds to a target are read from the curve of the test set's accuracy, made monotone,
with linear interpolation between rounds (McMahan et al. 2017, section 3). Every run is an ordinary run
directory, with its experiment, its seed and its report.

"ours" is the median of the seeds, "chosen" the value that the search found.
"""


def fidelity_page() -> str:
    """The whole page; papers without results are named as such."""
    return HEAD + "".join("\n" + section for section in _sections())


def _sections() -> Iterator[str]:
    for name in names(PAPERS):
        path = FOLDER / f"{name}.json"
        if path.is_file():
            yield _section(name, json.loads(path.read_text(encoding="utf-8")))


def _section(name: str, found: dict[str, Any]) -> str:
    lines = [f"## {name}", "", f"[{found['title']}]({found['url']}), {found['cite']}.", ""]
    lines += [f"| {' | '.join(HEADS)} |", "| --- " * len(HEADS) + "|"]
    lines += [f"| {' | '.join(line)} |" for row in found["rows"] for line in cells(row)]
    lines += ["", f"`{found['command']}` gave these, in {_runs(found)}."]
    lines += ["", found["note"]] if found["note"] else []
    return "\n".join(lines) + "\n"


def _runs(found: dict[str, Any]) -> str:
    """How many runs, and on what."""
    gpus = Counter(run["gpu"] for row in found["rows"] for run in row["runs"])
    counted = f"{gpus.total()} runs"
    on_gpu = [f"{number} of them on one {gpu}" for gpu, number in gpus.items() if gpu]
    return ", ".join([counted, *on_gpu])
