"""Synthetic(α, β): what α and β do, labels by the equation, the same examples every time."""

import numpy as np
import pytest

from research.data.synthetic import CLASSES, FEATURES, SyntheticConfig, draw_device
from research.errors import UserError


def test_devices_are_natural_clients_with_a_fifth_held_out():
    dataset = SyntheticConfig(devices=5, seed=1).load()
    assert dataset.specification.shape == (60,) and dataset.specification.classes == 10
    assert dataset.clients is not None and dataset.test_is_validation
    train, test = np.bincount(dataset.clients.train), np.bincount(dataset.clients.test)
    assert (train + test >= 50).all() and len(dataset.clients.names) == 5
    np.testing.assert_array_equal(test, (train + test) // 5)
    assert len(dataset.train) == train.sum() and len(dataset.test) == test.sum()
    again, other = SyntheticConfig(devices=5, seed=1).load(), SyntheticConfig(devices=5).load()
    assert again.digest == dataset.digest != other.digest


def test_labels_are_those_of_the_devices_own_model():
    """The same draws once more, in the order of the paper, and its softmax written out."""
    x, y = draw_device(0.5, 2.0, 40, np.random.RandomState(3))
    random = np.random.RandomState(3)
    u, center = 0.5 * random.standard_normal(), 2.0 * random.standard_normal()
    weights = np.array([[u + random.standard_normal() for _ in range(60)] for _ in range(10)])
    bias = np.array([u + random.standard_normal() for _ in range(10)])
    v = np.array([center + random.standard_normal() for _ in range(60)])
    for example, label in zip(x, y, strict=True):
        drawn = [v[j] + (j + 1) ** -0.6 * random.standard_normal() for j in range(60)]
        np.testing.assert_allclose(example, drawn, rtol=1e-6, atol=1e-6)  # float32
        logits = weights @ drawn + bias
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert label == probabilities.argmax()


def test_alpha_moves_all_logits_alike_and_no_label():
    one, other = (draw_device(alpha, 1.0, 500, np.random.RandomState(6)) for alpha in (0.0, 5.0))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])
    assert len(set(one[1])) > 1


def test_beta_is_the_deviation_of_the_devices_centers_and_sigma_that_of_their_examples():
    random = np.random.RandomState(0)
    devices = [draw_device(0.0, 3.0, 200, random)[0] for _ in range(300)]
    centers = np.array([x.mean() for x in devices])  # of B_k, and 60 entries of v_k around it
    # The deviation of 300 draws is known within 1 / sqrt(600), 4 %.
    np.testing.assert_allclose(centers.std(), np.hypot(3.0, 1 / np.sqrt(FEATURES)), rtol=0.12)
    within = np.mean([x.var(axis=0, ddof=1) for x in devices], axis=0)
    np.testing.assert_allclose(within, np.arange(1, 61) ** -1.2, rtol=0.03)
    assert CLASSES == 10


def test_values_that_cannot_be_are_named():
    with pytest.raises(UserError, match=r"alpha -1.0 and beta 1.0 are deviations"):
        SyntheticConfig(alpha=-1.0).load()
    with pytest.raises(UserError, match="0 devices and seed 0 cannot be: set 1 device or more"):
        SyntheticConfig(devices=0).load()
