"""Datasets and their partition over clients. Depends on arrays and files; not on models, Flower or Hydra."""

from fedq.data.accept import as_dataset
from fedq.data.errors import DataNotFoundError
from fedq.data.examples import Dataset, Examples
from fedq.data.idx import fashion_mnist, read_idx
from fedq.data.partition import PARTITIONERS, ByColumn, Dirichlet, Iid
from fedq.data.shard import is_shard, read_shard, write_shard
from fedq.data.sklearn_digits import digits
from fedq.data.split import split_indices
from fedq.data.tabular import csv

__all__ = [
    "PARTITIONERS",
    "ByColumn",
    "DataNotFoundError",
    "Dataset",
    "Dirichlet",
    "Examples",
    "Iid",
    "as_dataset",
    "csv",
    "digits",
    "fashion_mnist",
    "is_shard",
    "read_idx",
    "read_shard",
    "split_indices",
    "write_shard",
]
