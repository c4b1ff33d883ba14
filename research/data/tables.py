"""Tables with a label in each row: breast cancer, heart disease of four hospitals, credit."""

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from research.data.dataset import Dataset, LabeledArrays, split_by_permutation
from research.data.download import PublishedFile, find, packaged
from research.data.hospitals import HOSPITAL_COLUMNS, load_hospitals

if TYPE_CHECKING:
    from research.models.specification import Specification

_BREAST_CANCER = ("sklearn", "datasets/data/breast_cancer.csv")
_BREAST_CANCER_SHA256 = "fed3eb72d0575ef6192293f5093c6e801b1476b577d0386bf4455504522172ed"


# Yeh and Lien 2009 (UCI 350; CC BY 4.0). UCI ships a spreadsheet: this is its table as text.
CREDIT_DEFAULT = PublishedFile(
    "UCI_Credit_Card.csv",
    "023eb2c3ad9efd15e7869616fa50a0143f25223105c7069ba632431530afdb61",
)
_MONTHS = ("september", "august", "july", "june", "may", "april")
CREDIT_COLUMNS = (
    *("limit", "sex", "education", "marriage", "age"),
    *(f"{what}_{month}" for what in ("delay", "bill", "paid") for month in _MONTHS),
)


@dataclass(frozen=True)
class TableConfig:
    """Rows of numbers and the label of each."""

    name: Literal["breast_cancer", "heart_disease", "credit_default"] = "breast_cancer"
    """Which table: breast_cancer has 569 patients and 30 measurements, and needs no download;
    heart_disease has 920 patients of four hospitals, its natural clients; credit_default, 30,000
    holders of credit cards, is looked for in $RESEARCH_DATA only."""
    batch: int = 32
    """Rows a step, over all devices."""

    def specification(self) -> "Specification":
        """The shapes of the table's rows; reads none."""
        from research.models.specification import Specification  # imports JAX

        features = {
            "heart_disease": len(HOSPITAL_COLUMNS),
            "credit_default": len(CREDIT_COLUMNS),
        }.get(self.name, 30)
        return Specification(shape=(features,), classes=2)

    def load(self) -> Dataset:
        """The table in memory; raises UserError where it cannot be had.

        breast_cancer: 399 rows for training, 85 and 85 held out, of a fixed shuffle. Label 0 is
        malignant, 1 benign. Source: Street, Wolberg and Mangasarian 1993 (UCI), as scikit-learn
        carries it. credit_default: 21,000, 4,500 and 4,500 rows of a fixed shuffle; label 1 is who
        did not pay in October 2005. Of both, every column is standardized with the mean and
        standard deviation of the training rows: two sums and a count that clients would add up.

        heart_disease: see `research.data.hospitals`; nothing that a hospital knows goes into
        another's rows.
        """
        if self.name == "heart_disease":
            return load_hospitals(self.specification())
        if self.name == "credit_default":
            [content] = find("credit-default", [CREDIT_DEFAULT])
            table = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)
            features, columns = table[:, 1:-1], CREDIT_COLUMNS  # without the number of the row
        else:
            content = packaged(*_BREAST_CANCER, _BREAST_CANCER_SHA256)
            # The first line counts rows and columns and names the labels.
            table = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)
            features, columns = table[:, :-1], ()
        labels = table[:, -1].astype(np.int32)
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
            columns=columns,
        )
