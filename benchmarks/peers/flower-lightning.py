"""Flower's simulation on Ray, with a Lightning Trainer in the client: what FLSimulation is made of.

As ``flower.py``, whose choices hold here too; a client is Flower's quickstart for PyTorch Lightning:
a LightningModule and a new Trainer each time, without logger, checkpoints, progress bar and summary.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytorch_lightning as pl
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor, nn
from torch.nn import functional

from flower_server import simulate
from peer import Batches, Workload, arguments, load, new_model

workload, write = arguments()
client_app = ClientApp()


class Module(pl.LightningModule):
    def __init__(self, layers: nn.Module, workload: Workload) -> None:
        super().__init__()
        self.layers, self.workload = layers, workload

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return functional.cross_entropy(self.layers(x), y)

    def configure_optimizers(self) -> Any:
        return self.workload.new_optimizer(self.layers)


@client_app.train()
def fit(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    x, y = load(workload).client(int(context.node_config["partition-id"]))
    layers = new_model(workload)
    layers.load_state_dict(message.content["arrays"].to_torch_state_dict())
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Module(layers, workload), Batches(x, y, workload.batch))
    content = RecordDict(
        {
            "arrays": ArrayRecord(layers.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y), "steps": trainer.global_step}),
        }
    )
    return Message(content=content, reply_to=message)


if __name__ == "__main__":
    simulate(client_app, workload, write, "pytorch-lightning")
