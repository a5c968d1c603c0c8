"""docs/benchmarks.md: the figures of benchmarks/results, each with its command and its machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import figure_tables

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"

HEAD = """\
# Benchmarks

Each table is followed by its command, the date and the machine. `make bench-all` runs all benchmarks again,
which takes hours, and `make docs` then writes this page. A machine's speed varies with its load, and the
ratios vary a little, too.
"""


@dataclass(frozen=True)
class Section:
    """A section: heading, method, figures of ``benchmarks/results/<name>.json``, conclusions.

    The name is the program's, perhaps with ``-<what>`` behind it.
    """

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
                f"No figures are kept; `python benchmarks/{self.name.partition('-')[0]}.py --json "
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


SECTIONS = (
    Section(
        "rounds",
        "Seconds per round, compared with a plain PyTorch loop",
        """\
```console
$ make bench
```

A plain loop takes the module's own training steps, client after client on one thread, and averages and
evaluates itself: the same steps on the same batches from the same weights with the same dropout (the
command stops if the models differ). A third side is the same loop in as many forked processes as there are
cores (`--processes`). Rounds of all sides alternate in one process. FLSimulation writes its run directory
and uses both cores. The command prints the largest memory for each workload.

| workload | model | data |
| --- | --- | --- |
| W1, W2 | 784-128-256-10 | MNIST |
| W3 | McMahan's CNN | MNIST |
| W4 | conv32-conv64-pool-fc128 | random images, 3 x 32 x 32 |
| W5 | 784-128-256-10, Dropout(0.2) after both hidden layers | MNIST |
| W6 | conv16-BatchNorm-conv32-BatchNorm-Dropout(0.2)-fc | MNIST |
| W7 | GRU(28, 64), fc | rows of MNIST's images |
| W8 | two TransformerEncoderLayers (64, 4 heads, 128, dropout 0.1), fc | rows of MNIST's images |
| W9 | Embedding(80, 64), LSTM(64, 128), fc | a Markov chain's text: 80 characters, sequences of 80, each position's next character |
| W10 | ResNet-8 with BatchNorm | a pattern per class and noise, 3 x 32 x 32 |

W5 to W10 are LightningModules as users write them, in
[`benchmarks/peers/shared/models.py`](../benchmarks/peers/shared/models.py). Each trains 10 of 100 clients with 600
examples, in batches of 32, with SGD and a learning rate of 0.05. `W5s` to `W10s` are the same with 100 of 1,000
clients, 60 examples and batches of 10. `python benchmarks/rounds.py W5 W6 W7 W8 W9 W10 --rounds 8` and
`python benchmarks/rounds.py W5s W6s W7s W8s W9s W10s --rounds 8` measure them.

W11 is W4 with the two dropouts of pfl-research's model, W12 a ResNet-18 with GroupNorm on the same images. Both are
for GPUs. `python benchmarks/rounds.py --device cuda` runs all workloads on a GPU, each beside the plain loop on the same
GPU. [Decision 32](decisions/0032-graphs.md) has figures of an H200.

Medians without the first two rounds:
""",
        figure_tables.rounds,
        """\
The forms for small clients, one run of 5 rounds each on the same machine: W5s 0.29, W6s 0.41, W7s 0.11, W8s 0.65, W9s 0.60,
W10s 0.48 of the plain loop (`python benchmarks/rounds.py W5s W6s W7s W8s W9s W10s --rounds 5 --engine stacked`).

W1 evaluates after every round, the others after every fifth. [Decision 12](decisions/0012-stacked-programs.md) explains the difference. With `--engine lightning`, clients
are trained one by one, as if [a model cannot be stacked](own-model.md#trained-with-many-others).
""",
    ),
    Section(
        "peers",
        "Comparison with other simulators",
        """\
`python benchmarks/peers.py` runs W1, W2 and W5 to W10, and the forms for small clients if they are named,
in a plain PyTorch loop (`bare`), in `flsim run` with its evaluation, logs and run directory, and in other
simulators of federated learning: Flower's simulation on Ray with a plain PyTorch client and with a Lightning
Trainer in the client, pfl-research, fluke and FedLab. Each is used as its documentation recommends, in a separate environment with the versions of
[`benchmarks/peers`](../benchmarks/peers), and with settings for this number of cores, which are in the script
of each. The model, the optimizer, the examples per client, the batches and the clients per round are the same,
and so is the number of optimizer steps, which is counted.

What a simulator cannot do is in its row: pfl-research and FedLab average parameters alone, so that the
statistics of BatchNorm (W6, W10) remain those of each process.

The simulators alternate. A round is measured inside the program, from the start of local training to the end of
aggregation, and of the central evaluation if there is one; the first two are omitted. The command is
the whole program, imports included, and the peak is the memory of all its processes together. The
accuracy is that of the last model: it shows that the work was done.
""",
        figure_tables.peers,
    ),
    Section(
        "peers-models",
        "Comparison on models as users write them",
        """\
The same program on W5 to W10: their models have dropout, batch normalisation, a GRU, attention, an LSTM and residual
blocks. Each workload was measured once, by the command below the tables with its name and its number of rounds.
""",
        figure_tables.peers,
        """\
`flsim run` decides itself how it trains. Attention and the LSTM are products of matrices, of which stacking makes no
fewer: two cores are worth as much there as in the plain loop in two processes, in the table further up.

After five rounds W9's accuracy still depends on the first weights, which the peers share and `flsim run` draws from a stream of its
own: with the seeds 1, 2 and 3 it is 0.17, 0.15 and 0.20 in `flsim run`, and 0.17, 0.17 and 0.14 in the plain loop
(`python benchmarks/peers.py W9 --rounds 5 --repeats 1 --peers bare flsimulation --seed 1`).
""",
    ),
    Section(
        "engine",
        "Ways to compute many clients' steps",
        """\
`python benchmarks/engine.py` computes a workload's steps for one cohort in several ways, alternating: client after
client, stacked by vmap and autograd, and as the traced program, replayed by Python or by TorchScript, with
SGD's steps outside or inside.
""",
        figure_tables.engine,
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
        figure_tables.overhead,
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
        figure_tables.command,
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
        figure_tables.network,
        """\
Most of stock Flower's time is sleep and imports: a SuperNode requests a message every 3 s, a part that is not
available yet is requested again after at least 1 s, and every message starts a process that imports PyTorch
([decision 9](decisions/0009-warm-processes.md), [10](decisions/0010-shorter-waits.md),
[11](decisions/0011-few-messages.md)). With many clients on two cores, the requests to the SuperLink take most of the time.
""",
    ),
    Section(
        "privacy",
        "Differential privacy of clients",
        """\
MNIST divided among 1,000 and 10,000 clients, a logistic regression of 7,850 parameters, three local epochs, Poisson cohorts,
delta one half divided by the clients, norm 0.5 ([privacy](privacy.md)). Each population and cohort is run without privacy, with
epsilon 2, 4 and 8, and without again; the ratio is of the medians of their rounds, without the first two. Noise is computed from
Renyi divergences for the whole run; the epsilon of the same noise by privacy loss distributions is beside it:
""",
        figure_tables.privacy,
    ),
    Section(
        "dpsgd",
        "DP-SGD in the clients",
        """\
`python benchmarks/dpsgd.py` divides MNIST among 20 clients of 3,000 images each, one local epoch in batches of 32, without privacy and with epsilon 2, 4
and 8 for single examples (delta 1e-5, norm 1; [privacy](privacy.md#example-level-dp-sgd)), all stacked. The runs take turns; seconds are medians of
their rounds without the first two. Accuracy is that after the last round: few rounds, whose noise is computed so that all epsilon is
spent in them.
""",
        figure_tables.dpsgd,
    ),
    Section(
        "secagg",
        "Secure aggregation",
        """\
`python benchmarks/secagg.py` compares a round of plain FedAvg with one of secure aggregation ([privacy](privacy.md#secure-aggregation)), in turns, for the
default model and 60 images of each client, so that the protocol is most of a round: in one process, on a network of processes and on one of containers, all on this
machine. Bytes are those of one client, down and up; `apart` is the largest difference of a number of the final model from plain FedAvg's. Medians without the first round:
""",
        figure_tables.secagg,
        """\
In one process most of the time is the sharing of secrets (neighbours x threshold products in GF(2^128) for each client, in Python). On a network it is one more message for each client and round, each with a process of its own. One round's models differ by
less than the step of the numbers (a test holds it to that); Adam's first steps, which divide small gradients by their size, enlarge it.
""",
    ),
    Section(
        "threads",
        "Waiting threads",
        """\
`python benchmarks/threads.py` compares how PyTorch's threads wait, with one and with two processes;
[decision 4](decisions/0004-waiting-threads.md) has the figures on which it is based.
""",
        figure_tables.threads,
    ),
)


def benchmarks_page(folder: Path = RESULTS) -> str:
    """Text of docs/benchmarks.md, of the results in ``folder``."""
    return "\n".join((HEAD, *(section.text(folder) for section in SECTIONS)))
