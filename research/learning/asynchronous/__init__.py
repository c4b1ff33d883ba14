"""Workers around a parameter server, in deterministic virtual time.

`Asynchronous` takes every gradient as it comes, by a `ServerRule`; `LocalWorkers` take steps of
their own and send moves, by a `MoveRule`; `BackupWorkers` does not wait for the slowest.
`AsynchronousConfig` names one of them, and how fast workers are.
"""

from research.learning.asynchronous.asynchronous import Asynchronous, AsynchronousState
from research.learning.asynchronous.asynchronous_config import AsynchronousConfig
from research.learning.asynchronous.backup_workers import BackupWorkers
from research.learning.asynchronous.local_workers import LocalWorkers, LocalWorkersState
from research.learning.asynchronous.move_rules import MoveRule
from research.learning.asynchronous.server_rules import ServerRule

__all__ = [
    "Asynchronous",
    "AsynchronousConfig",
    "AsynchronousState",
    "BackupWorkers",
    "LocalWorkers",
    "LocalWorkersState",
    "MoveRule",
    "ServerRule",
]
