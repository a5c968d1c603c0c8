"""Many clients' local training as one program: their parameters stacked, their steps taken at once.

ClientUpdate of McMahan et al., "Communication-Efficient Learning of Deep Networks from
Decentralized Data" (AISTATS 2017), algorithm 1, for a whole cohort. Its results
equal those of `LocalTrainer` for the same batches, to rounding; tests/test_cohort.py compares them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TypeAlias

import pytorch_lightning as pl
import torch

from flsimulation.clock import SYSTEM, Clock
from flsimulation.data.leaves import Leaves, each, examples, one
from flsimulation.experiment.spec import Train
from flsimulation.training.batches import Batches
from flsimulation.training.jobs import State
from flsimulation.training.precision import in_precision
from flsimulation.training.preparation import PLAIN, Preparation
from flsimulation.training.products import in_tf32, takes_tf32
from flsimulation.training.rates import rate_factor
from flsimulation.training.stacked.compiler.calls import calls_of
from flsimulation.training.stacked.compiler.facts import BY_BATCHES
from flsimulation.training.stacked.compiler.program import StepPrograms
from flsimulation.training.stacked.compiler.step import NotStackable, named_tensors
from flsimulation.training.stacked.configuring import Configuring
from flsimulation.training.stacked.eligible import check_stackable, plain_rates
from flsimulation.training.stacked.halving import Halving
from flsimulation.training.stacked.hooks import Fit, clips_of
from flsimulation.training.stacked.room import kept_on, room_on_cpu, room_on_gpu
from flsimulation.training.stacked.samples import check_worth, probed, some
from flsimulation.training.stacked.stack import Stack, WaveTerms, aliases
from flsimulation.training.stacked.standing import graphs_on
from flsimulation.training.stacked.threads import Threads
from flsimulation.training.stacked.wave import Wave, WaveFit
from flsimulation.training.stacked.ways import choose, convolves
from flsimulation.training.trainers import takes_gpu
from flsimulation.training.work import Tell, Work, silent

Ending: TypeAlias = Callable[[Wave, State], Wave]
"""Returns a wave in another form, of it and the global model on its device."""

_DATA_SHARE = 2  # of a GPU's free memory for the data set: 1 / 2
_COPIES = 4  # of a parameter, where the optimizer keeps two moments
_MANY = 10**6  # waves of a round: each size of a batch is worth a program
_COUNTED = 4  # examples of a batch whose step's calls are counted


class StackedTrainer:
    """Trains the clients of a cohort in waves, each wave as one stacked program.

    A wave has a core of the CPU, and fits its caches; or the GPU, and fits its memory. The data set
    is copied to the GPU where it takes no more than half of the free memory.

    Parameters
    ----------
    module : LightningModule
        The model; never changed.
    spec : Train
        Batch size, epochs, gradient clipping, device.
    x, y : Tensor or dict of Tensor
        Inputs and targets of the data set, [n, ...].
    clock : Clock
        The clock to use.
    prepared : Preparation
        How batches are prepared for the module.
    work : Work, optional
        What the clients do in all rounds; a step is traced only where it is worth that.
    tell : callable
        Called with what the choice of the engine does now.

    Raises
    ------
    NotStackable
        If the module means something else stacked than alone.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        spec: Train,
        x: Leaves,
        y: Leaves,
        clock: Clock = SYSTEM,
        *,
        prepared: Preparation = PLAIN,
        work: Work | None = None,
        tell: Tell = silent,
    ) -> None:
        check_stackable(module, spec)
        gpu = takes_gpu(spec)
        device = torch.device("cuda" if gpu else "cpu")
        kinds = {name: value.dtype for name, value in module.state_dict().items()}
        module = in_precision(module, spec.precision).to(device)
        configuring = Configuring(module, spec.epochs, spec.accumulate)
        like = some(x, y, prepared.transform)
        few = [each(lambda t: t.to(device), part) for part in like]
        constants = {
            "max_epochs": spec.epochs,
            "accumulate_grad_batches": spec.accumulate,
            "gradient_clip_val": spec.gradient_clip or None,
            "gradient_clip_algorithm": None,
        }
        if work is not None and spec.engine != "stacked":
            batch = [each(lambda t: t[:_COUNTED], part) for part in few]
            check_worth(work, calls_of(module, batch[0], batch[1], prepared.form, constants))
        sample = [one(part, slice(_COUNTED)) for part in few]
        fit = Fit(
            *(sample[0], sample[1], prepared.form, spec.epochs, spec.accumulate),
            *(spec.gradient_clip, constants),
        )
        clips = clips_of(module, fit)
        scaled = spec.precision == "16-mixed"
        programs = StepPrograms(
            *(module, few[0], few[1], prepared.form, tell, constants), scaled=scaled
        )
        largest = min(spec.batch_size, examples(x))
        tell("trying sizes of a batch")
        programs.check_sizes(probed(largest))
        stays = prepared.transform is not None  # it works on the CPU
        x, y = (x, y) if stays else kept_on(device, _DATA_SHARE, x, y)
        named = dict(module.named_parameters())
        self._stack = Stack(
            programs=programs,
            parameters=[named[name] for name in programs.names.trained],
            aliases=aliases(module),
            kinds=kinds,
            own_kinds={name: value.dtype for name, value in module.state_dict().items()},
            tensors={name: t.detach() for name, t in named_tensors(module).items()},
            optimization=configuring,
            epochs=spec.epochs,
            accumulate=spec.accumulate,
            clips=clips,
            x=x,
            y=y,
            like=like,
            device=device,
            clock=clock,
            work=work,
            transforms=stays,
            scaled=scaled,
            graphs=graphs_on(device, rates_move=spec.learning_rate_decay != 1),
        )
        optimizer, schedulers = configuring()
        if scaled and any(group.get("fused") for group in optimizer.param_groups):
            raise NotStackable("a fused optimizer divides gradients by their scale itself")
        changes = bool(schedulers) or configuring.by_batches
        self._goes_by_epochs = changes or not BY_BATCHES.isdisjoint(programs.names.facts)
        changes |= configuring.by_round or spec.learning_rate_decay != 1
        self._rates = None if changes else self._in_place(optimizer)
        self._rate_factor = functools.partial(rate_factor, spec)
        self._room = (
            room_on_gpu(programs, largest, self._rates, device)
            if gpu
            else room_on_cpu(programs, largest)
        )
        if self._stack.graphs is not None:
            self._stack.graphs.room = self._room
        self._threads = Threads()
        self._halving = Halving()
        self._tf32, self._largest, self._convolves = takes_tf32(spec), largest, convolves(module)

    @property
    def data(self) -> tuple[Leaves, Leaves]:
        """Inputs and targets of the data set, on the GPU if they are kept there."""
        return self._stack.x, self._stack.y

    def choose(self, cohort: int, before: Mapping[str, float] | None = None) -> dict[str, float]:
        """What `ways.choose` returns for a cohort of so many clients; empty where there is no choice."""
        stack, size = self._stack, (self.at_once(cohort), self._largest)
        if stack.graphs is None or not self._convolves:
            return {}
        with in_tf32(self._tf32):
            return choose(stack.graphs, stack.programs, size, self._rates, before)

    @property
    def has_choice(self) -> bool:
        """Whether a step of all clients is not always the fastest: on a GPU, with convolutions."""
        return self._stack.graphs is not None and self._convolves

    def fit(
        self,
        state: State,
        clients: Sequence[Batches],
        seeds: Sequence[Callable[[], int]] | None = None,
        *,
        proximal_mu: float = 0.0,
        expires: float | None = None,
        average: bool = False,
        ending: Ending | None = None,
        round: int = 0,
        practice: bool = False,
    ) -> Generator[Wave, None, None]:
        """Train every client from the same global model; yields wave by wave.

        Parameters
        ----------
        state : dict of Tensor
            The global model; not changed.
        clients : sequence of Batches
            The clients' training parts.
        seeds : sequence of callables, optional
            Each returns the seed of what a client's steps draw; called only if they draw. By
            default it is 0 for all.
        proximal_mu : float
            Weight of FedProx's term mu/2 |w - w_global|^2; 0 for none.
        expires : float, optional
            Unix time in seconds after which to give up.
        average : bool
            Give each wave's mean model only.
        ending : callable, optional
            Called with a wave and the global model; returns what is given instead.
        round : int
            Number of the round.
        practice : bool
            Whether these steps stand for many more: no size of a batch is then too rare for a
            program.
        """
        device = self._stack.device
        start = {n: state[n].to(device, dtype) for n, dtype in self._stack.own_kinds.items()}
        rates = self._rates if proximal_mu == 0 else None
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        waves = self._waves(clients, threads, in_place=rates is not None)
        factor, seeds = self._rate_factor(round), seeds or [int] * len(clients)
        alike = _MANY if practice else len(waves)
        terms = WaveTerms(start, rates, proximal_mu, expires, round, factor, alike)

        def run(places: list[int]) -> Wave:
            own = [clients[place].again() for place in places]
            fit = WaveFit(self._stack, terms, own, [seeds[place] for place in places])
            with in_tf32(self._tf32):
                wave = fit.run(tuple(places))
                if ending is not None:
                    whole = {name: state[name].to(device) for name in self._stack.kinds}
                    return ending(wave, whole).on_cpu()
            return (wave.averaged() if average else wave).on_cpu()

        def train(places: list[int]) -> Wave:
            graphs = self._stack.graphs
            return run(places) if graphs is None else graphs.beside(lambda: run(places))

        fitting = functools.partial(self._halving.run, train)
        if threads == 1 or len(waves) == 1:
            for places in waves:
                yield from fitting(places)
        else:
            yield from self._threads.run(fitting, waves, threads)

    def at_once(self, cohort: int) -> int:
        """The most clients of a cohort that train together, on one core or on the GPU."""
        threads = torch.get_num_threads() if self._stack.device.type == "cpu" else 1
        return min(cohort, self._most(cohort, threads, in_place=self._rates is not None))

    def _waves(
        self, clients: Sequence[Batches], threads: int, *, in_place: bool
    ) -> list[list[int]]:
        """Clients that train together: as many as there is room for, of like length."""
        if not clients:
            return []
        most = self._most(len(clients), threads, in_place=in_place)
        order = sorted(range(len(clients)), key=lambda place: -clients[place].examples)
        if not self._goes_by_epochs:
            return [order[i : i + most] for i in range(0, len(order), most)]
        waves: list[list[int]] = []  # whose epochs end together
        for place in order:
            steps = len(clients[place])
            if not waves or len(waves[-1]) == most or len(clients[waves[-1][0]]) != steps:
                waves.append([])
            waves[-1].append(place)
        return waves

    def _most(self, clients: int, threads: int, *, in_place: bool) -> int:
        """The most clients of so many in a wave: all threads have as many waves."""
        size = sum(p.nbytes for p in self._stack.parameters) * (1 if in_place else _COPIES)
        most = self._room.clients(size)
        turns = -(-clients // (most * threads))
        return -(-clients // (turns * threads))

    def _in_place(self, optimizer: torch.optim.Optimizer) -> tuple[float, ...] | None:
        """The learning rates, if programs can take the steps themselves."""
        if self._stack.clips or self._stack.accumulate > 1 or self._stack.scaled:
            return None
        rates = plain_rates(optimizer, self._stack.parameters)
        can = rates is not None and self._stack.programs.can_descend(rates)
        return rates if can else None
