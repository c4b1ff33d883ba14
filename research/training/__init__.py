"""The one loop, and what a machine can lose: data position, checkpoints, logs, preemption.

`train` runs any algorithm's step function. `Checkpoints` is Orbax, asynchronous and atomic;
`RunFolder` holds a run's files; `RunConfig` says how long and how often.
"""

from research.training.configuration import RunConfig

__all__ = ["RunConfig"]
