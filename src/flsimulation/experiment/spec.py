"""The experiment: everything that decides a run's result, in one frozen, validated object.

The documentation of a key is the text under its field; ``docs/experiment.md`` is made from it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, JsonValue, field_validator, model_validator

from flsimulation.experiment.data_section import Data as Data
from flsimulation.experiment.own_train import OwnTrain, check_own
from flsimulation.experiment.privacy_section import Privacy as Privacy
from flsimulation.experiment.private import check_privacy
from flsimulation.experiment.section import Count, Fraction
from flsimulation.experiment.section import Section as Section
from flsimulation.experiment.section import kebab as kebab
from flsimulation.experiment.secure import check_secure
from flsimulation.experiment.strategy import STRATEGIES, check_parameters


class Model(Section):
    """The model, a LightningModule."""

    class_: str = "mlp"
    """`mlp` (784-128-256-10), `2nn` (784-200-200-10), `cnn` (two 5x5 convolutions), `logistic`
    (784-10), `unet` (one class per pixel), `lstm` (tokens), or your own `module:Class` or `path/to/file.py:Class`. Paths are relative to the
    experiment file."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments of the class, for example `learning_rate = 0.001`."""


class Train(Section):
    """One client's local training."""

    epochs: Count = 1
    """Passes over the client's training part in a round."""
    batch_size: Annotated[int, Field(ge=1, lt=2**31)] = 32
    """Examples per step; the last batch of an epoch may be smaller."""
    gradient_clip: Annotated[float, Field(ge=0)] = 0.0
    """Largest norm of the gradient; 0 for no clipping."""
    accumulate: Count = 1
    """Batches whose gradients are averaged for each optimizer step."""
    precision: Literal["32-true", "64-true", "bf16-true", "bf16-mixed", "16-mixed"] = "32-true"
    """Number format of training and evaluation, as in Lightning's Trainer; the model is exchanged in
    its own. On a CPU `16-mixed` is `bf16-mixed`, as in Lightning."""
    learning_rate_decay: Fraction = 1.0
    """Factor on the module's learning rates for each round after the first: in round r they are
    multiplied by its (r - 1)th power, at each step of the module's own schedulers."""
    validate_: bool = False
    """Also run the module's validation loop on the held-out part after each local epoch, for
    schedulers and callbacks that monitor what it logs."""
    engine: Literal["auto", "stacked", "direct", "lightning"] = "auto"
    """How the clients of one process train. `stacked`: many at once, as one program. `direct`: one by
    one, in a plain PyTorch loop. `lightning`: one by one, with Lightning's Trainer. `auto`: the first
    of them with which the results are the Trainer's; where both of the first two are, the one whose
    steps are measured to be faster."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` uses a GPU if there is one."""
    tf32: bool = False
    """Whether a GPU rounds the factors of products and convolutions to TF32's 10 bits, in training and in
    evaluation: faster for large layers, and less exact. No effect on a CPU."""
    sites: dict[str, OwnTrain] = {}
    """Sites that train in their own way: a table `[train.sites.NAME]` for each, with `batch-size`,
    `epochs` or `learning-rate` (the model's argument `learning_rate`); see
    [own values of a site](sites.md#own-values-of-a-site)."""

    @field_validator("engine", mode="before")
    @classmethod
    def _renamed(cls, engine: object) -> object:
        """Accept the name that ``lightning`` had before."""
        return "lightning" if engine == "sequential" else engine


class Strategy(Section):
    """The federated strategy: a name and the parameters of Flower's class of that name."""

    model_config = ConfigDict(extra="allow")

    name: str = "fedavg"
    """`fedavg`, `fedprox`, `fedavgm`, `fedadam`, `fedadagrad`, `fedyogi`, `qfedavg`,
    `fedmedian`, `fedtrimmedavg`, `krum`, `multikrum` or `bulyan`. Its own parameters stand
    beside it, for example `proximal-mu = 0.1`."""
    rounds: Count = 3
    """Rounds of federated training."""
    fraction_train: Fraction = 1.0
    """Share of the clients that trains in a round (rounded down, at least `min-train-nodes`)."""
    fraction_evaluate: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the clients that evaluates the new model each round; 0 for none."""
    min_train_nodes: Count = 1
    """Fewest clients that train in a round."""
    min_evaluate_nodes: Count = 1
    """Fewest clients that evaluate in a round."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in STRATEGIES:
            raise ValueError(f"must be one of {', '.join(STRATEGIES)}")
        return name

    @model_validator(mode="after")
    def _parameters(self) -> Strategy:
        check_parameters(self.name, self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The strategy's own parameters, as written (kebab-case)."""
        return dict(self.model_extra or {})


class Evaluate(Section):
    """How the global model is evaluated."""

    central_every: Annotated[int, Field(ge=0)] = 1
    """Number of rounds between evaluations on the test set, which the last round always has; 0 for
    never."""
    target_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """End the run after the round whose model reaches this accuracy on the test set, if that is
    before the last; 0 for never."""
    batch_size: Annotated[int, Field(ge=0)] = 0
    """Examples per batch of an evaluation; 0 for as many as a fixed budget of memory allows."""
    clients: Annotated[int, Field(ge=0)] = 1000
    """After the last round, evaluate on this many clients' held-out parts (the first ones, all
    if there are fewer), to show how accuracy differs between clients; 0 for none."""


class Round(Section):
    """When a round ends and whether it counts."""

    deadline: Annotated[float, Field(ge=0)] = 0.0
    """Seconds for the training of a round and again for its evaluation; clients that are not
    done by then are left out and counted. 0 for no limit."""
    min_results: Count = 1
    """Clients that must succeed for a round to count; with fewer the run stops."""
    late: Literal["refuse", "join"] = "refuse"
    """On a network, clients that are not connected when `runtime.client-wait` is over. `refuse`: the
    run stops. `join`: it begins without them, if there are at least `min-results` and
    `strategy.min-train-nodes` others, and each takes part from the next round after it connects; see
    [a client may join late](sites.md#a-client-may-join-late). In one process and on Ray there are none."""


class Runtime(Section):
    """Where the experiment runs, and how server and clients exchange messages."""

    kind: Literal["inprocess", "ray", "network"] = "inprocess"
    """`inprocess`: all in one process. `ray`: on the actors of Flower's simulation runtime, each
    with a share of the clients. `network`: over a Flower SuperLink, each client a program of its
    own."""
    ray_address: str = ""
    """For `ray`: `host:port` or `ray://host:port` of a running Ray, or `auto` for the one of this
    machine; empty starts Ray on this machine for the run."""
    actors: Annotated[int, Field(ge=0)] = 0
    """For `ray`: number of actors that share the clients; each holds the data and the model. 0
    for as many as fit, but not more than clients."""
    actor_cpus: Annotated[float, Field(gt=0)] = 1.0
    """For `ray`: CPUs, and so threads, of each actor; may be less than 1."""
    actor_gpus: Annotated[float, Field(ge=0)] = 0.0
    """For `ray`: GPUs of each actor; 0.5 lets two share one. With 0 they train on CPUs."""
    superlink: str = "127.0.0.1:8080"
    """`host:port` of the SuperLink, for `network`."""
    client_wait: Annotated[float, Field(ge=0)] = 120.0
    """Seconds to wait for clients to connect before the run stops. For `ray`: to wait for actors if other
    programs use the resources that they need; otherwise there is no limit."""
    return_wait: Annotated[float, Field(ge=0)] = 30.0
    """Seconds that a round waits for a disconnected client before it begins without it."""

    @property
    def is_simulation(self) -> bool:
        """Whether server and clients are of one program, which knows the seed of every draw."""
        return self.kind != "network"

    @field_validator("superlink")
    @classmethod
    def _address(cls, superlink: str) -> str:
        if not re.fullmatch(r"[^\s/]+:[0-9]+", superlink):
            raise ValueError("must be host:port, for example superlink:8080")
        return superlink

    @field_validator("ray_address")
    @classmethod
    def _ray_address(cls, address: str) -> str:
        if not re.fullmatch(r"(auto|(ray://)?[^\s/]+:[0-9]+)?", address):
            raise ValueError("must be empty, auto, host:port or ray://host:port")
        return address

    @field_validator("actor_cpus", "actor_gpus")
    @classmethod
    def _part_or_whole(cls, number: float) -> float:
        if number > 1 and not number.is_integer():
            raise ValueError("must be a whole number where it is more than 1")
        return number


class Experiment(Section):
    """One experiment; every key has a default."""

    name: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9_-])?$", max_length=100)
    ] = "default"
    """A short name (letters, digits, `_`, `-`, and `.` inside); it names the run directory."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw of the run."""
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    strategy: Strategy = Strategy()
    evaluate: Evaluate = Evaluate()
    round: Round = Round()
    privacy: Privacy = Privacy()
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _cohorts(self) -> Experiment:
        for key in ("min_train_nodes", "min_evaluate_nodes"):
            if (least := getattr(self.strategy, key)) > self.data.clients:
                raise ValueError(
                    f"strategy.{kebab(key)} must be at most data.clients "
                    f"({self.data.clients}), got {least}"
                )
        if self.round.min_results > self.cohort_size:
            raise ValueError(
                f"round.min-results must be at most the {self.cohort_size} clients that train in "
                f"a round, got {self.round.min_results}"
            )
        if self.evaluate.target_accuracy and not self.evaluate.central_every:
            raise ValueError(
                f"evaluate.target-accuracy {self.evaluate.target_accuracy} is reached on the test "
                f"set; set evaluate.central-every to 1 or more"
            )
        if self.evaluate.target_accuracy and self.data.of_sites and not self.data.test:
            raise ValueError(
                f"evaluate.target-accuracy {self.evaluate.target_accuracy} is reached on the test "
                f"set, and the sites have none; set data.test, or leave the key out"
            )
        self._check_robustness()
        check_own(self.train.sites, self.data)
        check_privacy(self)
        check_secure(self.privacy, self.strategy.name, self.cohort_size)
        return self

    def of_client(self, partition: int) -> Experiment:
        """The experiment as one client trains by it, with its site's own keys."""
        if not self.train.sites:
            return self
        own = self.train.sites.get(self.data.sites[partition], OwnTrain())
        values = {"batch_size": own.batch_size, "epochs": own.epochs}
        train = {name: value for name, value in values.items() if value}
        model = self.model
        if own.learning_rate:
            args = {**model.args, "learning_rate": own.learning_rate}
            model = model.model_copy(update={"args": args})
        update = {"train": self.train.model_copy(update=train), "model": model}
        return self.model_copy(update=update)

    def _check_robustness(self) -> None:
        """Check that Krum and Bulyan have enough clients."""
        name, given = self.strategy.name, self.strategy.parameters
        factor = {"krum": 2, "multikrum": 2, "bulyan": 4}.get(name)
        malicious = given.get("num-malicious-nodes", 0)
        needed = factor * malicious + 3 if factor and (malicious or name == "bulyan") else 0
        if self.cohort_size < needed:
            raise ValueError(
                f"strategy.name {name} needs at least {needed} clients a round "
                f"({factor} x num-malicious-nodes + 3), got {self.cohort_size}"
            )
        if (selected := given.get("num-nodes-to-select", 1)) > self.cohort_size:
            raise ValueError(
                f"strategy.num-nodes-to-select must be at most the {self.cohort_size} clients "
                f"that train in a round, got {selected}"
            )

    @property
    def cohort_size(self) -> int:
        """Clients that train in a round, as Flower's strategies count them."""
        share = int(self.data.clients * self.strategy.fraction_train)
        return max(share, self.strategy.min_train_nodes)

    @property
    def least_clients(self) -> int:
        """Fewest clients without which no round is trained."""
        return max(self.round.min_results, self.strategy.min_train_nodes)

    @property
    def evaluated_size(self) -> int:
        """Clients that evaluate in a round, as Flower's strategies count them."""
        share = int(self.data.clients * self.strategy.fraction_evaluate)
        return max(share, self.strategy.min_evaluate_nodes)
