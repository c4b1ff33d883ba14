"""Ensembles: members that learn alone, side by side, and answer together.

`Ensemble` is of whole models, `Snapshots` are what one run passes, `BatchEnsemble` has members of
rank one around shared weights. `EnsembleConfig` names one, its members' data and what is their
own (`Traits`). A `Combination` puts their answers together.
"""

from research.learning.ensemble.answers import Member, Predictions
from research.learning.ensemble.batch_ensemble import BatchEnsemble, BatchEnsembleState
from research.learning.ensemble.ensemble import Ensemble, EnsembleState
from research.learning.ensemble.ensemble_config import EnsembleConfig
from research.learning.ensemble.snapshots import Snapshots, SnapshotState
from research.learning.ensemble.traits import Traits

__all__ = [
    "BatchEnsemble",
    "BatchEnsembleState",
    "Ensemble",
    "EnsembleConfig",
    "EnsembleState",
    "Member",
    "Predictions",
    "SnapshotState",
    "Snapshots",
    "Traits",
]
