"""Workers around a parameter server, in deterministic virtual time.

`Asynchronous` takes every gradient as it comes, by a `ServerRule`; `BackupWorkers` does not wait
for the slowest. `AsynchronousConfig` names one of them, and how fast workers are.
"""

from research.learning.asynchronous.asynchronous import Asynchronous, AsynchronousState
from research.learning.asynchronous.asynchronous_config import AsynchronousConfig
from research.learning.asynchronous.backup_workers import BackupWorkers
from research.learning.asynchronous.server_rules import ServerRule

__all__ = [
    "Asynchronous",
    "AsynchronousConfig",
    "AsynchronousState",
    "BackupWorkers",
    "ServerRule",
]
