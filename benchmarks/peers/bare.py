"""A round as anyone would write it in PyTorch: client after client, then the mean of the models.

One thread: on models of this size a second one gains little.
"""

from __future__ import annotations

import random

import torch

from peer import Batches, Rounds, Steps, accuracy, arguments, load, new_model, train

workload, write = arguments()
torch.set_num_threads(1)
data, model, rounds, steps = load(workload), new_model(workload), Rounds(), Steps()
cohorts = random.Random(workload.seed)
state = {name: value.clone() for name, value in model.state_dict().items()}
for number in range(1, workload.rounds + 1):
    rounds.begin()
    total = {name: torch.zeros_like(value) for name, value in state.items()}
    examples = 0
    for client in cohorts.sample(range(workload.clients), workload.cohort):
        x, y = data.client(client)
        model.load_state_dict(state)
        train(model, Batches(x, y, workload.batch), workload.new_optimizer(model))
        for name, value in model.state_dict().items():
            total[name] += value * len(y)
        examples += len(y)
    state = {name: (total[name] / examples).to(value.dtype) for name, value in state.items()}
    model.load_state_dict(state)
    if workload.evaluates(number):
        accuracy(model, data)
    rounds.end()
write(rounds, steps.number, accuracy(model, data))
