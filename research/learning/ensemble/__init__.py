"""Ensembles: members that learn alone, side by side, and answer together.

`Ensemble` is the learner, `EnsembleConfig` names its size, its members' data and what is their own
(`Traits`). A `Combination` puts their answers together.
"""

from research.learning.ensemble.ensemble import Ensemble, EnsembleState, Member, Predictions
from research.learning.ensemble.ensemble_config import EnsembleConfig
from research.learning.ensemble.traits import Traits

__all__ = [
    "Ensemble",
    "EnsembleConfig",
    "EnsembleState",
    "Member",
    "Predictions",
    "Traits",
]
