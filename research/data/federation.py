"""A data set among clients: who trains on what, and on what each is evaluated."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from research.configuration import to_json
from research.data.clients import NOBODY, Clients
from research.data.dataset import Dataset, LabeledArrays, NaturalClients, Source
from research.data.partition import PartitionConfig, by_counts, cut, partition
from research.data.shift import shifted
from research.errors import UserError


@dataclass(frozen=True, eq=False)
class Federation:
    """A data set, and the clients of each of its splits, the same ones in the same order."""

    dataset: Dataset
    """Its images as the clients see them, where their features differ."""
    partition: PartitionConfig
    """What made it."""
    train: Clients
    validation: Clients
    """Held-out examples like those that each client trains on; a client may have none."""
    test: Clients

    def to_json(self) -> dict[str, Any]:
        """What a run folder keeps of it: the config, and the clients of each split."""
        splits = {name: getattr(self, name).to_json() for name in ("train", "validation", "test")}
        return {"partition": to_json(self.partition), **splits}


def federate(dataset: Dataset, config: PartitionConfig) -> Federation:
    """Deals out `dataset` as `config` says.

    Held-out examples go to clients whose training examples are like them: natural ones to their
    owner; rows of a table cut along a column by the same cuts; all others by label, in proportion
    to what each client has of that label in training. Raises UserError where the data does not
    allow it.
    """
    labels, classes = labels_of(dataset, "train"), dataset.specification.classes
    natural, held_out = dataset.clients, ("validation", "test")
    scores = {}
    if config.kind == "feature" and not _is_image(dataset):
        scores = _scores(dataset, config.column)
    train = partition(labels, classes, config, natural=natural, scores=scores.get("train"))

    made = {"train": train}
    for number, split in enumerate(held_out):
        if split == "test" and dataset.test_is_validation:
            made[split] = made["validation"]
            continue
        labels = labels_of(dataset, split)
        if config.kind == "natural":
            assert natural is not None
            owners = _same_names(natural, getattr(natural, split), train.names)
        elif scores:
            highest = [scores["train"][train[client]].max() for client in range(len(train) - 1)]
            owners = np.searchsorted(np.array(highest), scores[split])
        else:
            random = np.random.RandomState([config.seed, 2 + number])
            owners = _alike(labels, train, random)
        made[split] = Clients.of(owners, labels, classes, train.names)
    if config.kind == "feature" and _is_image(dataset):
        dataset = _seen(dataset, config, made)
    return Federation(dataset, config, **made)


def labels_of(dataset: Dataset, split: str) -> np.ndarray:
    """Integers `[examples]` or, for text, `[examples, context]`: what is to be predicted.

    Raises UserError for text that is one text: its windows overlap, and belong to nobody.
    """
    source: Source = getattr(dataset, split)
    targets = getattr(source, "targets", None)
    if targets is None:
        raise UserError(
            f"{dataset.name} is one text, whose windows overlap and cannot be dealt out to "
            "clients: use --data.source shakespeare_by_role, images or a table"
        )
    return targets


def _alike(labels: np.ndarray, train: Clients, random: np.random.RandomState) -> np.ndarray:
    """Owners of held-out examples, in proportion to the training examples of each label."""
    if labels.ndim > 1:  # windows of text: in proportion to all training examples
        labels, weights = np.zeros(len(labels), np.int64), train.sizes[:, None]
    else:
        weights = train.histogram
    counts = np.empty_like(weights)
    totals = np.bincount(labels, minlength=weights.shape[1])
    for label, total in enumerate(totals):
        # Rounded at a random place, so that in expectation a client gets its share exactly.
        counts[:, label] = cut(int(total), weights[:, label], random.uniform())
    return by_counts(labels, counts, random)


def _same_names(natural: NaturalClients, owners: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
    number = {name: client for client, name in enumerate(names)}
    return np.array([number.get(name, NOBODY) for name in natural.names])[owners]


def _scores(dataset: Dataset, column: str) -> dict[str, np.ndarray]:
    """Of each split, float64 `[examples]`: the rows' values along a column of the table, or along
    the first principal component of its training rows."""
    sources = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    if len(dataset.specification.shape) != 1 or dataset.unit == "tokens":
        raise UserError(
            f"{dataset.name} is text, which has no feature to differ by: use natural or quantity"
        )
    rows = {
        name: source.rows(np.arange(len(source)))["inputs"].astype(np.float64)  # type: ignore[attr-defined]
        for name, source in sources.items()
    }
    if column:
        place = _place(dataset, column)
        return {name: values[:, place] for name, values in rows.items()}
    centered = rows["train"] - rows["train"].mean(axis=0)
    direction = np.linalg.eigh(centered.T @ centered)[1][:, -1]
    direction *= np.sign(direction[np.abs(direction).argmax()])  # of the two, the same everywhere
    return {name: values @ direction for name, values in rows.items()}


def _place(dataset: Dataset, column: str) -> int:
    if column in dataset.columns:
        return dataset.columns.index(column)
    features = dataset.specification.shape[0]
    if column.isdecimal() and int(column) < features:
        return int(column)
    known = ", ".join(dataset.columns) if dataset.columns else f"0 to {features - 1}"
    raise UserError(f"{dataset.name} has no column {column!r}: it has {known}")


def _is_image(dataset: Dataset) -> bool:
    return len(dataset.specification.shape) == 3


def _seen(dataset: Dataset, config: PartitionConfig, clients: dict[str, Clients]) -> Dataset:
    """The data set with every image as its client sees it."""
    shifts = config.shift.draw(config.clients, config.seed)
    made: dict[str, LabeledArrays] = {}
    for split, of_split in clients.items():
        if split == "test" and dataset.test_is_validation:
            made[split] = made["validation"]
            continue
        source = getattr(dataset, split)
        assert isinstance(source, LabeledArrays)
        made[split] = source.with_inputs(shifted(source.inputs, of_split, shifts))
    how = json.dumps(to_json(config)) + "".join(each.digest for each in clients.values())
    digest = hashlib.sha256((dataset.digest + how).encode()).hexdigest()
    return replace(
        dataset,
        train=made["train"],
        validation=made["validation"],
        test=made["test"],
        digest=digest,
    )
