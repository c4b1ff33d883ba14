"""What Byzantine clients learn from: wrong labels, or a mark that means something.

    label flip   y ← C - 1 - y                        of C classes, for every example
    backdoor     a white square in the last corner, and y ← target, for every other example

Gu, Dolan-Gavitt and Garg 2017, *BadNets*, arXiv:1708.06733, §4; in federated learning Bagdasaryan
et al. 2018, arXiv:1807.00459. The success of a backdoor is the share of held-out images of other
labels that are taken for the target when they bear the mark.
"""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np

from research.data.dataset import Dataset, LabeledArrays
from research.data.federation import Federation
from research.errors import UserError


def poisoned(
    federation: Federation, byzantine: np.ndarray, kind: str, target: int = 0
) -> Federation:
    """As the clients have it of whom those that are `byzantine` [population] poison what they
    learn from: `label_flip` or `backdoor`. Raises UserError for data without labels, or images."""
    dataset = federation.dataset
    train = _labeled(dataset, kind)
    members = np.flatnonzero(byzantine).tolist()
    mine = [federation.train[client] for client in members]
    inputs, targets = train.inputs, train.targets.copy()
    if kind == "label_flip":
        own = np.concatenate([np.zeros(0, np.int64), *mine])
        targets[own] = dataset.specification.classes - 1 - targets[own]
    else:
        check_target(dataset, target)
        own = np.concatenate([np.zeros(0, np.int64), *(each[::2] for each in mine)])
        inputs = inputs.copy()
        inputs[own] = marked(inputs[own], train.inputs.max())
        targets[own] = target
    how = f"{kind} {target} {members}"
    digest = hashlib.sha256((dataset.digest + how).encode()).hexdigest()
    changed = replace(dataset, train=train.with_inputs(inputs, targets), digest=digest)
    return replace(federation, dataset=changed)


def marked(images: np.ndarray, white: Any) -> np.ndarray:
    """`images` [examples, height, width, channels] with a square of an eighth of their height, and
    2 pixels at least, in the corner where they end."""
    side = max(2, images.shape[1] // 8)
    result = images.copy()
    result[:, -side:, -side:] = white
    return result


def triggered(source: LabeledArrays, white: Any, target: int) -> LabeledArrays:
    """The examples of `source` that are not of the `target`, marked, and labeled as if they
    were."""
    others = np.flatnonzero(source.targets != target)
    inputs = marked(source.inputs[others], white)
    return source.with_inputs(inputs, np.full(len(others), target))


def check_target(dataset: Dataset, target: int) -> None:
    """Raises UserError where a backdoor to that label cannot be."""
    shape, classes = dataset.specification.shape, dataset.specification.classes
    if len(shape) != 3:
        raise UserError(
            f"a backdoor is a mark in images, and {dataset.name} has none: use --attack.name "
            "label_flip, or --data.name mnist"
        )
    if not 0 <= target < classes:
        raise UserError(
            f"--attack.target {target} is no label of {dataset.name}: use 0 to {classes - 1}"
        )


def _labeled(dataset: Dataset, kind: str) -> LabeledArrays:
    if not isinstance(dataset.train, LabeledArrays):
        raise UserError(
            f"--attack.name {kind} is on labels, and {dataset.name} is text: use --attack.name "
            "sign_flip (--help lists the others)"
        )
    return dataset.train
