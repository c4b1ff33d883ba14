"""What models learn from: corpora, images and tables, and which examples make each step's batch.

A config (`TextConfig`, `ImagesConfig`, `TableConfig`, `SyntheticConfig`) loads a `Dataset`: train,
validation and test sources of NumPy examples, and what they ask of a model. `Batches` says which
examples make the batch of a step, as a pure function of (seed, step); `evaluation_batches` walks a
split in order. `federate` deals a data set out to clients, as a `PartitionConfig` says. Files come
from `$RESEARCH_DATA`, the cache, or their publisher, and are digest-checked.
"""

from research.data.batches import Batches, evaluated_examples, evaluation_batches
from research.data.canaries import Canaries, with_canaries
from research.data.clients import Clients
from research.data.cohorts import Cohorts
from research.data.dataset import Dataset, LabeledArrays, Source, read_rows
from research.data.download import cache_folder
from research.data.federation import Federation, federate
from research.data.held_out import HeldOut
from research.data.images import ImagesConfig
from research.data.members import Members
from research.data.outside import outside
from research.data.partition import PartitionConfig
from research.data.poisoning import poisoned, triggered
from research.data.poisson import BatchesInTurn, PoissonBatches
from research.data.shift import ImageShift
from research.data.synthetic import SyntheticConfig
from research.data.tables import TableConfig
from research.data.taught import Taught
from research.data.text import TextConfig, TokenWindows
from research.data.vocabulary import Vocabulary, vocabulary_from_json

__all__ = [
    "Batches",
    "BatchesInTurn",
    "Canaries",
    "Clients",
    "Cohorts",
    "Dataset",
    "Federation",
    "HeldOut",
    "ImageShift",
    "ImagesConfig",
    "LabeledArrays",
    "Members",
    "PartitionConfig",
    "PoissonBatches",
    "Source",
    "SyntheticConfig",
    "TableConfig",
    "Taught",
    "TextConfig",
    "TokenWindows",
    "Vocabulary",
    "cache_folder",
    "evaluated_examples",
    "evaluation_batches",
    "federate",
    "outside",
    "poisoned",
    "read_rows",
    "triggered",
    "vocabulary_from_json",
    "with_canaries",
]
