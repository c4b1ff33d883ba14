"""The typed description of a run: a model, data, an optimizer, a mesh and how long.

A config is a Python file with `experiment = Experiment(...)`; a notebook builds the same object. It
is frozen, goes to JSON and back, and holds nothing that needs a device.
"""

import runpy
import traceback
from collections.abc import Collection
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from research.configuration import check, from_json, nearest, to_json
from research.data import (
    ImagesConfig,
    PartitionConfig,
    SyntheticConfig,
    TableConfig,
    TextConfig,
)
from research.errors import UserError
from research.learning import (
    AggregationConfig,
    AsynchronousConfig,
    AttackConfig,
    EnsembleConfig,
    ExchangeConfig,
    FederatedConfig,
    OptimizerConfig,
    PrivacyConfig,
)
from research.learning.federated import check_private_rounds
from research.models import (
    CNNConfig,
    LinearConfig,
    LSTMConfig,
    MLPConfig,
    ResNetConfig,
    TransformerConfig,
)
from research.parallel.mesh import MeshConfig
from research.parallel.schedules import PipelineConfig
from research.training import RunConfig

__all__ = [
    "AggregationConfig",
    "AsynchronousConfig",
    "AttackConfig",
    "CNNConfig",
    "EnsembleConfig",
    "ExchangeConfig",
    "Experiment",
    "FederatedConfig",
    "ImagesConfig",
    "LSTMConfig",
    "LinearConfig",
    "MLPConfig",
    "MeshConfig",
    "OptimizerConfig",
    "PartitionConfig",
    "PipelineConfig",
    "PrivacyConfig",
    "ResNetConfig",
    "RunConfig",
    "SyntheticConfig",
    "TableConfig",
    "TextConfig",
    "TransformerConfig",
]

Model = TransformerConfig | LSTMConfig | MLPConfig | CNNConfig | ResNetConfig | LinearConfig
Data = TextConfig | ImagesConfig | TableConfig | SyntheticConfig

BATCH_WITH_CANARIES = 16
"""At most a quarter of the examples are left out: no batch is but with a probability of 4^-16."""


@dataclass(frozen=True)
class Experiment:
    """Everything that decides what a run computes."""

    model: Model = field(default_factory=TransformerConfig)
    """What is learned."""

    data: Data = field(default_factory=TextConfig)
    """What it is learned from."""

    optimizer: OptimizerConfig = OptimizerConfig()
    """How a gradient becomes an update."""

    mesh: MeshConfig = MeshConfig()
    """How the devices are shared out."""

    pipeline: PipelineConfig = PipelineConfig()
    """How microbatches go through the stages of the mesh."""

    exchange: ExchangeConfig = ExchangeConfig()
    """What replicas that differ exchange, and when."""

    asynchronous: AsynchronousConfig = AsynchronousConfig()
    """Workers around a parameter server, in virtual time."""

    federated: FederatedConfig = FederatedConfig()
    """Clients that keep their data, and what their server does."""

    ensemble: EnsembleConfig = EnsembleConfig()
    """Members that learn alone and answer together."""

    partition: PartitionConfig = PartitionConfig()
    """Which client has which examples."""

    attack: AttackConfig = AttackConfig()
    """Which clients or replicas do not do what they should."""

    privacy: PrivacyConfig = PrivacyConfig()
    """What may be told about one unit of the data, and within which budget."""

    run: RunConfig = RunConfig()
    """For how long, and what is written down."""

    def check(self) -> None:
        """Raises UserError for a value of a wrong type, or that no run can have."""
        check(self, "experiment")
        self.run.check()
        ways = {
            f"--{name}.rule {way.rule}": way
            for name in ("exchange", "asynchronous", "federated", "ensemble")
            if (way := getattr(self, name)).rule != "none"
        }
        if len(ways) > 1:
            raise UserError(
                f"{' and '.join(ways)} are {len(ways)} ways to learn together: set all but one of "
                "them to none"
            )
        if self.asynchronous.rule == self.federated.rule == self.ensemble.rule == "none":
            self.exchange.check(self.mesh)
        self.asynchronous.check(self.data.batch)
        self.federated.check()
        self.ensemble.check(self.mesh, self.optimizer)
        if self.ensemble.teacher is not None and self.federated.rule != "none":
            raise UserError(
                "--ensemble.teacher is not for clients, who learn from labels of their own: leave "
                "it out, or use --federated.rule none"
            )
        self.partition.check()
        self.attack.check()
        if self.attack.name != "none" and self.exchange.rule == self.federated.rule == "none":
            raise UserError(
                f"--attack.name {self.attack.name} is by clients or replicas, and there are none: "
                "use --federated.rule fedavg or --exchange.rule every_step"
            )
        self._check_privacy(ways)
        batch, microbatches = self.data.batch, self.optimizer.microbatches
        if microbatches < 1 or batch % microbatches:
            raise UserError(
                f"batch {batch} does not divide into {microbatches} microbatches: use "
                f"--data.batch {max(batch - batch % max(microbatches, 1), microbatches, 1)} "
                "or another --optimizer.microbatches"
            )

    def _check_privacy(self, ways: Collection[str]) -> None:
        privacy = self.privacy
        privacy.check()
        if privacy.canaries:
            self._check_canaries(ways)
        if privacy.unit == "client":
            check_private_rounds(self.federated, privacy)
        if privacy.unit != "example":
            return
        if self.federated.rule != "none":
            raise UserError(
                f"--privacy.unit example is accounted for batches of all examples, and in "
                f"--federated.rule {self.federated.rule} each client has its own: use "
                "--privacy.unit client"
            )
        if ways:
            raise UserError(
                f"--privacy.unit example is accounted for one model that sees all of a step's "
                f"examples, which {next(iter(ways))} has not: set it to none, and spread the batch "
                "by --mesh.data"
            )
        if self.optimizer.microbatches > 1:
            raise UserError(
                f"--optimizer.microbatches {self.optimizer.microbatches} cut a batch of fixed "
                "size, and a private one is drawn: use --privacy.microbatch, the examples of a "
                "device whose gradients are had at once"
            )

    def _check_canaries(self, ways: Collection[str]) -> None:
        shared = [*ways, *["--ensemble.teacher"] * (self.ensemble.teacher is not None)]
        if self.mesh.stage > 1:
            shared.append(f"--mesh.stage {self.mesh.stage}")
        if shared:
            raise UserError(
                f"--privacy.canaries are for one model that learns from labels alone and can be "
                f"asked for the loss of each example, which {shared[0]} is not: leave one of the "
                "two out"
            )
        if self.privacy.unit == "none" and self.data.batch < BATCH_WITH_CANARIES:
            raise UserError(
                f"a batch of {self.data.batch} may consist of canaries that were left out alone: "
                f"use --data.batch {BATCH_WITH_CANARIES} or more with --privacy.canaries"
            )

    def to_json(self) -> dict[str, Any]:
        """The experiment as what the json module can write."""
        return to_json(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Experiment":
        """What `to_json` wrote. Raises UserError naming what does not fit."""
        return from_json(cls, content, "experiment")

    @classmethod
    def load(cls, path: Path) -> "Experiment":
        """The `experiment` of the config file at `path`.

        Raises UserError for a file that is missing, does not run, or defines no experiment.
        """
        if not path.is_file():
            beside = (
                sorted(p.stem for p in path.parent.glob("*.py")) if path.parent.is_dir() else []
            )
            known = f": {nearest(path.stem, beside)}" if beside else ""
            raise UserError(f"there is no config file {path}{known}")
        try:
            names = runpy.run_path(str(path))
        except UserError:
            raise
        except Exception as error:
            raise UserError(_where_it_failed(path, error)) from error
        experiment = names.get("experiment")
        if not isinstance(experiment, cls):
            raise UserError(f"{path} defines no `experiment = Experiment(...)`")
        experiment.check()
        return experiment


def flags(section: Any, prefix: str = "--") -> list[str]:
    """Every field of an experiment as the command line spells it, such as `--run.log-every`."""
    spelled: list[str] = []
    for option in fields(section):
        value, flag = getattr(section, option.name), prefix + option.name.replace("_", "-")
        spelled += flags(value, f"{flag}.") if is_dataclass(value) else [flag]
    return spelled


def _where_it_failed(path: Path, error: Exception) -> str:
    """One sentence: file, line, what is wrong, and for an unknown field the nearest known one."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    line = getattr(error, "lineno", None) if isinstance(error, SyntaxError) else None
    line = line or (lines[-1] if lines else None)
    place = f"{path}, line {line}" if line else str(path)
    message = str(error)
    marker = "got an unexpected keyword argument "
    if isinstance(error, TypeError) and marker in message:
        owner, _, name = message.partition(marker)
        owner, name = owner.split(".")[0].strip(), name.split("'")[1]
        kind = globals().get(owner)
        if kind is not None:
            return f"{place}: {owner} has no field `{name}`: " + nearest(
                name, [f.name for f in fields(kind)]
            )
    return f"{place}: {type(error).__name__}: {message.splitlines()[0] if message else ''}"
