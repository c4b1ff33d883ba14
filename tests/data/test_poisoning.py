"""What Byzantine clients learn from, and how a backdoor's success is counted."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from research.data import ImagesConfig, LabeledArrays, PartitionConfig, federate
from research.data.poisoning import marked, poisoned, triggered
from research.errors import UserError
from research.experiment import (
    AttackConfig,
    Experiment,
    FederatedConfig,
    LinearConfig,
    OptimizerConfig,
    RunConfig,
)
from research.prepared import Prepared

DATA = ImagesConfig(name="digits")
FEDERATION = federate(DATA.load(), PartitionConfig("iid", clients=10))
BAD = np.isin(np.arange(10), [2, 7])


def train(federation: object) -> LabeledArrays:
    source = federation.dataset.train  # type: ignore[attr-defined]
    assert isinstance(source, LabeledArrays)
    return source


def own(client: int) -> np.ndarray:
    return FEDERATION.train[client]


def test_labels_are_flipped_for_the_byzantine_only() -> None:
    before, after = train(FEDERATION), train(poisoned(FEDERATION, BAD, "label_flip"))
    for client in range(10):
        labels = before.targets[own(client)]
        wanted = 9 - labels if BAD[client] else labels
        np.testing.assert_array_equal(after.targets[own(client)], wanted)
    np.testing.assert_array_equal(after.inputs, before.inputs)
    changed = poisoned(FEDERATION, BAD, "label_flip").dataset
    assert changed.digest != FEDERATION.dataset.digest
    assert changed.validation is FEDERATION.dataset.validation


def test_every_other_example_bears_the_mark_and_the_target() -> None:
    before, after = train(FEDERATION), train(poisoned(FEDERATION, BAD, "backdoor", 3))
    for client in range(10):
        mine = own(client)
        images, labels = before.inputs[mine].copy(), before.targets[mine].copy()
        if BAD[client]:
            images[::2, -2:, -2:] = before.inputs.max()
            labels[::2] = 3
        np.testing.assert_array_equal(after.inputs[mine], images)
        np.testing.assert_array_equal(after.targets[mine], labels)


def test_a_backdoor_is_tried_on_images_of_other_labels() -> None:
    source = train(FEDERATION)
    tried = triggered(source, 16, 3)
    assert len(tried) == (source.targets != 3).sum() and (tried.targets == 3).all()
    assert (tried.inputs[:, -2:, -2:] == 16).all()
    assert marked(np.zeros((1, 28, 28, 1)), 1)[0, 25:, 25:].sum() == 9


def test_what_cannot_be_poisoned_is_named() -> None:
    with pytest.raises(UserError, match="attack.target 10 is no label of digits: use 0 to 9"):
        poisoned(FEDERATION, BAD, "backdoor", 10)
    rows = replace(FEDERATION.dataset, train=object())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="label_flip is on labels, and digits is text"):
        poisoned(replace(FEDERATION, dataset=rows), BAD, "label_flip")


def success(attack: AttackConfig) -> dict[str, float]:
    experiment = Experiment(
        LinearConfig(),
        replace(DATA, batch=16),
        OptimizerConfig(name="sgd", learning_rate=0.05, schedule="constant", clip=None),
        federated=FederatedConfig("fedavg", cohort=10),
        partition=PartitionConfig("iid", clients=10),
        attack=attack,
        run=RunConfig(steps=8, compilation_cache=False),
    )
    prepared = Prepared(experiment)
    with jax.set_mesh(prepared.mesh):
        state, step = prepared.learner.init(), prepared.compile()
        feed = prepared.feed(0)
        for _ in range(8):
            state, metrics = step(state, next(feed))
        feed.close()  # type: ignore[attr-defined]
        assert metrics["byzantine"] == 3
        return prepared.evaluate(state, prepared.dataset.validation)


def test_a_backdoor_opens_where_nobody_looks() -> None:
    metrics = success(AttackConfig("backdoor", count=3, target=3, strength=3.0))
    assert metrics["backdoor_success"] > 0.8 and metrics["accuracy"] > 0.8
