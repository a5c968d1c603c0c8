"""The table ``data`` of an experiment file."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from flsimulation.experiment.section import Count, Fraction, Section
from flsimulation.experiment.sites import check_sites, of_folder

Fill = Literal["refuse", "mean", "median", "zero", "drop"]


class Data(Section):
    """The data set and how it is divided among the clients."""

    dataset: str = "mnist"
    """`mnist` (ships with the package), `fashion-mnist` (from a local copy), `synthetic` (generated
    here), `file:PATH` (a folder of IDX files or of images, with masks or not, a `.csv` or a `.npz`),
    `hf:OWNER/NAME` (Hugging Face, through Flower Datasets), `sites:FOLDER` (a data set of its own for
    each client), or your own `module:function` or `path/to/file.py:function`. Paths are relative to
    the experiment file."""
    clients: Annotated[int, Field(ge=1, lt=2**31)] = 2
    """Number of clients; each is one partition of the training data."""
    partition: Literal[
        "iid",
        "dirichlet",
        "pathological",
        "shards",
        "linear",
        "square",
        "exponential",
        "natural",
        "drawn",
    ] = "iid"
    """How examples go to clients. `iid`: at random, equal sizes. `dirichlet`: label shares drawn
    with concentration `alpha`. `pathological`: `classes-per-client` classes each. `shards`:
    sorted by label, `shards-per-client` pieces each. `linear`, `square`, `exponential`: IID
    labels, sizes growing with the client's number. `natural`: by the column `partition-column`.
    `drawn`: each client draws its own `examples-per-client` at random; clients may hold the same
    examples, and there may be millions of clients."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet distribution; small means few labels per client."""
    classes_per_client: Count = 2
    """Classes per client under `pathological`."""
    shards_per_client: Count = 2
    """Shards per client under `shards`."""
    examples_per_client: Annotated[int, Field(ge=0)] = 0
    """Examples per client, on average if sizes differ: the pool that is partitioned has `clients`
    times as many, drawn at random. 0 partitions the whole training set."""
    min_examples: Annotated[int, Field(ge=2)] = 10
    """Fewest examples that a client may hold; a partition with fewer is refused."""
    validation_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of its examples that each client holds out for evaluation; 0 for none."""
    image_column: str = "image"
    """Column (Hugging Face) or name of the array with the inputs."""
    label_column: str = "label"
    """Column with the labels, in Hugging Face data sets and CSV files."""
    partition_column: str = "client"
    """Column with each example's client under `natural`."""
    test_fraction: Fraction = 0.2
    """Share used as the test set if the data set has none; of `synthetic`, a share of each client's
    examples."""
    args: dict[str, JsonValue] = {}
    """Keyword arguments of your own data function or of `synthetic`, for example `beta = 0.5`."""
    task: Literal[
        "auto", "classification", "regression", "multilabel", "segmentation", "language"
    ] = "auto"
    """What the labels are. `classification`: one class per example. `regression`: numbers.
    `multilabel`: several classes per example, each 0 or 1. `segmentation`: one class per pixel.
    `language`: the next token at each position. `auto`: decided by the labels, and shown."""
    input_columns: list[str] = []
    """Columns of a table that are inputs; empty for all except label and client."""
    separator: str = ""
    """Character between the columns of a CSV file; empty to detect it."""
    decimal: Literal["", ".", ","] = ""
    """Decimal mark of the numbers in a CSV file; empty to detect it."""
    encoding: str = ""
    """Encoding of a CSV file, for example `utf-8` or `cp1252`; empty to detect it."""
    missing_values: list[str] = ["", "NA", "N/A", "NaN", "nan", "null", "?"]
    """Words for a missing number in an input column of a CSV file. Labels, clients and categories are
    text: there only the empty cell is missing."""
    fill: Fill = "refuse"
    """What replaces a missing input number: nothing (`refuse`), the mean or median of the column's
    training examples, or 0; `drop` leaves out the row."""
    standardize: bool | Literal["federated"] = False
    """Scale each numeric input column to mean 0 and standard deviation 1 of the training examples of
    all clients together. `federated`, for `sites:FOLDER`: from each site's count, mean and variance."""
    image_size: Annotated[int, Field(ge=0)] = 0
    """Side in pixels to which images of a folder or of Hugging Face are resized, as squares; 0 requires
    one size."""
    image_mode: Literal["auto", "grey", "rgb"] = "auto"
    """Channels of images of a folder or of Hugging Face; `auto` is grey if all are grey, else RGB."""
    batch: Literal["pair", "dict"] = "pair"
    """What a module's steps receive: a pair of inputs and labels, or a dict with the inputs and
    labels by name."""
    transform: str = ""
    """Your own `module:function` or `path/to/file.py:function` that changes each training batch, for
    example to augment images; empty for none. Paths are relative to the experiment file."""
    evaluation_transform: str = ""
    """The same for batches of evaluations, where nothing is random."""
    transform_per: Literal["batch", "example"] = "batch"
    """What both functions are called with: a whole batch, or one example after the other."""
    sites: list[str] = []
    """Under `sites:FOLDER`: names of the sites, which are the clients 0, 1, ...; empty for all sites of
    the folder in sorted order. Needed where the folder does not exist."""
    reader: str = ""
    """Under `sites:FOLDER`: your own `module:function` or `path/to/file.py:function` that reads one site,
    called with its name, its path and `args`; empty for files in a form of `file:PATH`."""
    test: str = ""
    """Under `sites:FOLDER`: `file:PATH` of a test set, which only the server reads; empty for none."""
    classes: list[str] = []
    """Under `sites:FOLDER`: names of the classes 0, 1, ...; empty for all class names of the sites."""
    categories: dict[str, list[str]] = {}
    """Under `sites:FOLDER`: categories of a table's columns, for example `ward = ["a", "b"]`; of other
    text columns, all that the sites have."""
    fill_columns: dict[str, Fill] = {}
    """Under `sites:FOLDER`: what replaces missing cells of single columns, where it is not `fill`."""
    constant: Literal["refuse", "accept"] = "refuse"
    """Under `sites:FOLDER`: whether a column of a table may have one value only at a site."""
    share_histogram: bool = False
    """Under `sites:FOLDER`: whether each site reports its number of examples of each class; otherwise it
    reports only their total."""

    @field_validator("standardize", mode="before")
    @classmethod
    def _scaling(cls, standardize: object) -> object:
        """Refuse in one line what is neither: Pydantic has one for each type."""
        if not isinstance(standardize, bool) and standardize != "federated":
            raise ValueError("must be true, false or 'federated'")
        return standardize

    @model_validator(mode="before")
    @classmethod
    def _of_folder(cls, table: Any) -> Any:
        """Fill in what a folder of sites decides: their names, and that they are the clients."""
        return of_folder(table) if isinstance(table, dict) else table

    @model_validator(mode="after")
    def _check_sites(self) -> Data:
        check_sites(self)
        return self

    @property
    def of_sites(self) -> bool:
        """Whether each client has a data set of its own."""
        return self.dataset.startswith("sites:")

    @property
    def has_test(self) -> bool:
        """Whether there is a test set, on which the server evaluates."""
        return not self.of_sites or bool(self.test)
