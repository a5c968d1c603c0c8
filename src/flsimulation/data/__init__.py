"""The data of a federation: a data set by name, and who holds which part of it."""

from flsimulation.data.dataset import Dataset
from flsimulation.data.partitions import partition_examples
from flsimulation.data.sources import load_dataset

__all__ = ["Dataset", "load_dataset", "partition_examples"]
