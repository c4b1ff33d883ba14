"""Heart disease in four hospitals: a natural federation of 920 patients.

Janosi, Steinbrunn, Pfisterer and Detrano 1989 (UCI 45; CC BY 4.0; Detrano et al. 1989, American
Journal of Cardiology 64): 303 patients of Cleveland, 294 of Budapest, 123 of Zurich and Basel, 200
of Long Beach. The label is 1 where a vessel is narrowed by half or more (1 to 4 in the files), 0
where none is.

Two thirds of all patients lack something, and no hospital measured everything of everybody: `?`,
and also a cholesterol or blood pressure of 0, is missing. What becomes of it uses only what the
patient's own hospital knows of its training patients:

- a number becomes (value - mean) / standard deviation, of those measured; a missing one becomes 0,
  the hospital's mean;
- a yes or no that is missing becomes the hospital's share of yes;
- of a kind (such as the four of chest pain) each has a column of 0 or 1, and all are 0 where it is
  missing.

A number that a hospital has of fewer than MEASURED training patients is missing for all of its
patients.
"""

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from research.data.dataset import Dataset, LabeledArrays, NaturalClients, split_by_permutation
from research.data.download import PublishedFile, find

if TYPE_CHECKING:
    from research.models.specification import Specification

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease/"
HOSPITALS = {
    "cleveland": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
    "hungarian": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
    "switzerland": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
    "va": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
}
"""Of each hospital, as the file's name has it, the sha256."""

MEASURED = 10
VALIDATION, TEST = 0.15, 0.25

# The 13 columns before the label, in the order of the files.
NUMBER, YES_OR_NO = (), (0.0, 1.0)
FILE_COLUMNS: dict[str, tuple[float, ...]] = {
    "age": NUMBER,  # years
    "male": YES_OR_NO,
    "chest_pain": (1.0, 2.0, 3.0, 4.0),  # typical angina, atypical, other pain, none
    "blood_pressure": NUMBER,  # mm Hg, at rest
    "cholesterol": NUMBER,  # mg / dl
    "fasting_sugar": YES_OR_NO,  # above 120 mg / dl
    "electrocardiogram": (0.0, 1.0, 2.0),  # normal, ST-T abnormal, hypertrophy
    "heart_rate": NUMBER,  # highest reached, beats a minute
    "angina": YES_OR_NO,  # by exercise
    "depression": NUMBER,  # of ST by exercise, mm
    "slope": (1.0, 2.0, 3.0),  # of ST at peak exercise: up, flat, down
    "vessels": NUMBER,  # 0 to 3, colored by fluoroscopy
    "thallium": (3.0, 6.0, 7.0),  # normal, fixed defect, reversible defect
}
NEVER_ZERO = ("blood_pressure", "cholesterol")
HOSPITAL_COLUMNS = tuple(
    name if kinds in (NUMBER, YES_OR_NO) else f"{name}_{kind:.0f}"
    for name, kinds in FILE_COLUMNS.items()
    for kind in (kinds if kinds not in (NUMBER, YES_OR_NO) else (0.0,))
)


def load_hospitals(specification: "Specification") -> Dataset:
    """The patients, hospital after hospital, each hospital split for itself.

    Of the patients with either label in a hospital 60 % train, 15 % validate and 25 % test, by a
    fixed shuffle. Raises UserError where a file cannot be had.
    """
    contents = find(
        "heart-4-hospitals",
        [
            PublishedFile(f"processed.{name}.data", sha256, f"{_UCI}processed.{name}.data")
            for name, sha256 in HOSPITALS.items()
        ],
    )
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [[], [], []]  # of each split, a hospital
    for content in contents:
        patients, labels = read_patients(content)
        split = split_by_label(labels)
        features = features_of(patients, split[0])
        for part, chosen in zip(parts, split, strict=True):
            part.append((features[chosen], labels[chosen]))
    train, validation, test = (
        LabeledArrays(*(np.concatenate(arrays) for arrays in zip(*part, strict=True)))
        for part in parts
    )
    owners = [
        np.repeat(np.arange(len(HOSPITALS)), [len(labels) for _, labels in part]) for part in parts
    ]
    return Dataset(
        name="heart_disease",
        train=train,
        validation=validation,
        test=test,
        specification=specification,
        unit="examples",
        vocabulary=None,
        digest=hashlib.sha256(b"".join(contents)).hexdigest(),
        columns=HOSPITAL_COLUMNS,
        clients=NaturalClients(tuple(HOSPITALS), *owners),
    )


def read_patients(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Of a hospital's file, float64 `[patients, 13]` with NaN for what is missing, and the labels
    0 or 1, int32 `[patients]`."""
    table = np.genfromtxt(io.BytesIO(content), delimiter=",", missing_values="?")
    patients, labels = table[:, :-1], (table[:, -1] > 0).astype(np.int32)
    for name in NEVER_ZERO:
        place = list(FILE_COLUMNS).index(name)
        patients[patients[:, place] == 0, place] = np.nan
    return patients, labels


def split_by_label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indexes for training, validation and test, ascending, with equal shares of both labels."""
    parts: list[list[np.ndarray]] = [[], [], []]
    for label in (0, 1):
        patients = np.flatnonzero(labels == label)
        split = split_by_permutation(len(patients), VALIDATION, TEST)
        for part, chosen in zip(parts, split, strict=True):
            part.append(patients[chosen])
    train, validation, test = (np.sort(np.concatenate(part)) for part in parts)
    return train, validation, test


def features_of(patients: np.ndarray, train: np.ndarray) -> np.ndarray:
    """float32 `[patients, features]` of one hospital, as the head of this file says.

    `patients` is `[patients, 13]` with NaN for what is missing; of `train`, indexes of patients,
    come all statistics.
    """
    features = []
    for values, kinds in zip(patients.T, FILE_COLUMNS.values(), strict=True):
        known = values[train][~np.isnan(values[train])]
        if kinds == NUMBER:
            if len(known) < MEASURED:
                features.append(np.zeros(len(values)))
                continue
            scaled = (values - known.mean()) / (known.std() or 1.0)
            features.append(np.where(np.isnan(values), 0.0, scaled))
        elif kinds == YES_OR_NO:
            share = known.mean() if len(known) else 0.5
            features.append(np.where(np.isnan(values), share, values))
        else:
            features += [(values == kind).astype(float) for kind in kinds]
    return np.stack(features, axis=1).astype(np.float32)
