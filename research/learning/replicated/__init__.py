"""Replicas that differ: whole models that learn side by side and meet by a `Rule`.

`Replicated` is the learner, `ExchangeConfig` names a rule for it: averages of gradients, local
updates (local SGD, DiLoCo and its streaming form, elastic averaging), gossip. What a rule sends is
an `Exchange` of `research.exchange`.
"""

from research.learning.replicated.exchange_config import ExchangeConfig
from research.learning.replicated.replicated import Plan, Replicated
from research.learning.replicated.rule import Rule
from research.learning.replicated.state import ReplicatedState

__all__ = ["ExchangeConfig", "Plan", "Replicated", "ReplicatedState", "Rule"]
