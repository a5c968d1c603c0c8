"""docs/fidelity.md: published and measured figures, from the files of ``flsim paper --json``."""

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

Figures that papers report, and those that FLSimulation reaches in the same experiments. The settings of each
paper are in [`experiments/papers`](../experiments/papers), with its data and models; they are not in the
package. In the repository, one command runs a paper's rows and prints these tables:

```console
$ flsim paper mcmahan2017 --minutes 30
```

It stops after this time; the same command continues from there. `--rows` selects rows, `--seeds 3` runs each
row with three seeds, `--json` stores the figures, and `flsim paper` alone lists the papers. Your own file in
the same form is run by its path: an experiment for all rows, the keys that each row changes, and its
published figures by measure. Measures are `rounds` (to
`evaluate.target-accuracy`), `accuracy` and `test-NAME` (scores on the test set, means of the `last`
rounds), `accuracy@N` (after round N), and `clients-mean`, `clients-worst`, `clients-best` and
`clients-variance` (of the clients' accuracies under the final model).

If a paper tuned a key, usually the clients' learning rate, it is tuned here on the same kind of grid: from a
first value to its neighbours on both sides, and further while the results improve, with seed 0. The other
seeds use the value that was found. A run is stopped after as many rounds as the best one before it needed,
which changes no result. Rounds to a target are read from the curve of the test set's accuracy, made monotone,
with linear interpolation between rounds (McMahan et al. 2017, section 3). Every run is an ordinary run
directory, with its experiment, its seed and its report.

"ours" is the median over the seeds, "chosen" the value that the search found.
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
