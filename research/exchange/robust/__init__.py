"""Rules that make one update of many, some of which may be anything: f Byzantine ones of n.

Every rule is a pure function of the updates side by side, x [n, ...] each, and of who is alive, [n]
bool; those who are not have zeros in x and count for nothing. `RULES` names them; `robust` is the
exchange of replicas, `rule_stage` a stage of a chain.
"""

from research.exchange.robust.exchange import robust
from research.exchange.robust.rules import MIXINGS, RULES, Robust, RobustRule, check_breakdown
from research.exchange.robust.stages import attack_stage, rule_stage

__all__ = [
    "MIXINGS",
    "RULES",
    "Robust",
    "RobustRule",
    "attack_stage",
    "check_breakdown",
    "robust",
    "rule_stage",
]
