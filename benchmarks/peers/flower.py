"""Flower's simulation on Ray, with a plain PyTorch client.

The Message API as in Flower's own PyTorch quickstart: ``FedAvg.start`` with ``evaluate_fn``, a
``ClientApp`` that gets the arrays and trains. Chosen for speed: two clients at once, each an actor
with one core and one thread; the data are read once in each actor, not once a message; batches are
slices of tensors, not a DataLoader's; no federated evaluation.
"""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_server import simulate
from peer import Batches, arguments, load, new_model, train

workload, write = arguments()
client_app = ClientApp()


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    x, y = load(workload).client(int(context.node_config["partition-id"]))
    model = new_model(workload)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    batches = Batches(x, y, workload.batch)
    train(model, batches, workload.new_optimizer(model))
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y), "steps": len(batches)}),
        }
    )
    return Message(content=content, reply_to=message)


if __name__ == "__main__":
    simulate(client_app, workload, write)
