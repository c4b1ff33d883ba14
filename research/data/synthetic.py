"""Synthetic(α, β): devices whose labels, and whose examples, are made in ways of their own.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, "Federated Optimization in Heterogeneous Networks",
2020, arXiv:1812.06127, §5.1, after Shamir, Srebro and Zhang, 2014. Of device k, with x in R^60 and
y in {0, ..., 9}:

    u_k ~ N(0, α)        W_k, b_k ~ N(u_k, 1)            y = argmax softmax(W_k x + b_k)
    B_k ~ N(0, β)        v_k ~ N(B_k, 1)                 x ~ N(v_k, Σ),  Σ_jj = j^-1.2

α says how much the devices' models differ, β how much their examples do. But u_k moves all logits
of an example alike, and no label: what differs by device are the draws of W_k and b_k around it, of
deviation 1 at every α, so α = 0 is not iid. Sizes n_k follow a power law: 50 + exp(N(4, 2)),
rounded down. As in the authors' code α, β and the 2 are standard deviations.
"""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from research.data.dataset import Dataset, LabeledArrays, NaturalClients
from research.errors import UserError

if TYPE_CHECKING:
    from research.models.specification import Specification

FEATURES, CLASSES = 60, 10
SMALLEST = 50
"""Examples that every device has at least."""
HELD_OUT = 0.2


@dataclass(frozen=True)
class SyntheticConfig:
    """Examples of Synthetic(α, β), made here."""

    alpha: float = 1.0
    """α: how much the devices' models differ (in what changes no label, see the file's head)."""
    beta: float = 1.0
    """β: how much the devices' examples differ."""
    devices: int = 30
    """How many there are: natural clients."""
    batch: int = 10
    """Examples a step, over all devices; of clients, those of a local step."""
    seed: int = 0
    """Of all that is drawn, for itself: the same examples in every run."""

    def specification(self) -> "Specification":
        """The shapes of the examples; makes none."""
        from research.models.specification import Specification  # imports JAX

        return Specification(shape=(FEATURES,), classes=CLASSES)

    def load(self) -> Dataset:
        """The examples, device after device; of each 80 % train, and the rest validates and tests.

        Raises UserError for values that no such data has.
        """
        if self.alpha < 0 or self.beta < 0:
            raise UserError(
                f"alpha {self.alpha} and beta {self.beta} are deviations: set both to 0 or more"
            )
        if self.devices < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                f"{self.devices} devices and seed {self.seed} cannot be: set 1 device or more, and "
                f"a seed of 0 to {2**32 - 1}"
            )
        random = np.random.RandomState(self.seed)
        sizes = random.lognormal(4.0, 2.0, self.devices).astype(np.int64) + SMALLEST
        made = [draw_device(self.alpha, self.beta, int(size), random) for size in sizes]
        held_out = (sizes * HELD_OUT).astype(np.int64)
        digest = hashlib.sha256()
        for inputs, labels in made:
            digest.update(inputs.tobytes() + labels.tobytes())
        # What a device draws is in no order: its last examples are as good as any.
        train = _joined([(x[:-n], y[:-n]) for (x, y), n in zip(made, held_out, strict=True)])
        test = _joined([(x[-n:], y[-n:]) for (x, y), n in zip(made, held_out, strict=True)])
        owners = [np.repeat(np.arange(self.devices), n) for n in (sizes - held_out, held_out)]
        return Dataset(
            name=f"synthetic({self.alpha:g}, {self.beta:g})",
            train=train,
            validation=test,
            test=test,
            test_is_validation=True,
            specification=self.specification(),
            unit="examples",
            vocabulary=None,
            digest=digest.hexdigest(),
            clients=NaturalClients(
                tuple(f"device {number}" for number in range(self.devices)),
                owners[0],
                owners[1],
                owners[1],
            ),
        )


def draw_device(
    alpha: float, beta: float, size: int, random: np.random.RandomState
) -> tuple[np.ndarray, np.ndarray]:
    """One device's x, float32 `[size, features]`, and y, int32 `[size]`."""
    u, b_mean = random.normal(0.0, alpha), random.normal(0.0, beta)
    weights = random.normal(u, 1.0, (CLASSES, FEATURES))
    bias = random.normal(u, 1.0, CLASSES)
    v = random.normal(b_mean, 1.0, FEATURES)
    deviation = np.arange(1, FEATURES + 1) ** -0.6  # Σ^(1/2)
    x = v + deviation * random.standard_normal((size, FEATURES))
    y = (x @ weights.T + bias).argmax(axis=1)  # softmax keeps the order
    return x.astype(np.float32), y.astype(np.int32)


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> LabeledArrays:
    return LabeledArrays(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
