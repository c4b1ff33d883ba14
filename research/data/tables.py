"""Tables with a label in each row: the breast cancer measurements of Wisconsin."""

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from research.data.dataset import Dataset, LabeledArrays, split_by_permutation
from research.data.download import packaged

if TYPE_CHECKING:
    from research.models.specification import Specification

_BREAST_CANCER = ("sklearn", "datasets/data/breast_cancer.csv")
_BREAST_CANCER_SHA256 = "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"


@dataclass(frozen=True)
class TableConfig:
    """Rows of numbers and the label of each."""

    name: Literal["breast_cancer"] = "breast_cancer"
    """Which table: breast_cancer has 569 patients and 30 measurements, and needs no download."""
    batch: int = 32
    """Rows a step, over all devices."""

    def specification(self) -> "Specification":
        """The shapes of the table's rows; reads none."""
        from research.models.specification import Specification  # imports JAX

        return Specification(shape=(30,), classes=2)

    def load(self) -> Dataset:
        """The table in memory: 399 rows for training, 85 and 85 held out, of a fixed shuffle.

        Every column is standardized with the mean and standard deviation of the training rows.
        Label 0 is malignant, 1 benign. Source: Street, Wolberg and Mangasarian 1993 (UCI), as
        scikit-learn carries it.
        """
        content = packaged(*_BREAST_CANCER, _BREAST_CANCER_SHA256)
        # The first line counts rows and columns and names the labels.
        table = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)
        features, labels = table[:, :-1], table[:, -1].astype(np.int32)
        parts = split_by_permutation(len(table), validation=0.15, test=0.15)
        mean, standard_deviation = features[parts[0]].mean(axis=0), features[parts[0]].std(axis=0)
        # Standardized in float64: some columns are a thousand times as far from 0 as they are wide.
        features = ((features - mean) / standard_deviation).astype(np.float32)
        train, validation, test = (LabeledArrays(features[part], labels[part]) for part in parts)
        return Dataset(
            name=self.name,
            train=train,
            validation=validation,
            test=test,
            specification=self.specification(),
            unit="examples",
            vocabulary=None,
            digest=hashlib.sha256(content).hexdigest(),
        )
