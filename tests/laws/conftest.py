"""The tables of the laws: the meshes, the models and the rules that all of them are run over.

A new model, or a new algorithm, is added here and must hold every law.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.errors import UserError
from research.learning import (
    AsynchronousConfig,
    Ensemble,
    EnsembleConfig,
    ExchangeConfig,
    Learner,
    OptimizerConfig,
    Replicated,
    Synchronous,
    Totals,
)
from research.models import (
    CNNConfig,
    LinearConfig,
    LSTMConfig,
    MLPConfig,
    ResNetConfig,
    Specification,
    TransformerConfig,
)
from research.parallel.layout import batch_sharding, place
from research.parallel.mesh import MeshConfig
from research.parallel.schedules import PipelineConfig

MESHES = {
    "data8": MeshConfig(data=8),
    "fsdp8": MeshConfig(data=1, fsdp=8),
    "data2-tensor4": MeshConfig(data=2, tensor=4),
    "data2-fsdp2-tensor2": MeshConfig(data=2, fsdp=2, tensor=2),
    "data2-context4": MeshConfig(data=2, context=4),
    "context2-fsdp2-tensor2": MeshConfig(data=1, fsdp=2, context=2, tensor=2),
    "data2-expert4": MeshConfig(data=2, expert=4),
    "expert2-fsdp2-tensor2": MeshConfig(data=1, expert=2, fsdp=2, tensor=2),
}


class Pipeline(NamedTuple):
    """A mesh with stages, what goes through them and how."""

    mesh: MeshConfig
    config: PipelineConfig
    microbatches: int


PIPELINES = {
    "gpipe-stage4-data2": Pipeline(MeshConfig(stage=4, data=2), PipelineConfig("gpipe"), 4),
    "interleaved-stage2-data2-tensor2": Pipeline(
        MeshConfig(stage=2, data=2, tensor=2), PipelineConfig("interleaved", 2), 4
    ),
    "1f1b-stage4-data2": Pipeline(MeshConfig(stage=4, data=2), PipelineConfig("1f1b"), 8),
    "1f1b-stage2-data2-context2": Pipeline(
        MeshConfig(stage=2, data=2, context=2), PipelineConfig("1f1b"), 4
    ),
    "1f1b-stage2-fsdp2-tensor2": Pipeline(
        MeshConfig(stage=2, data=1, fsdp=2, tensor=2), PipelineConfig("1f1b"), 4
    ),
    "1f1b-stage2-data2-expert2": Pipeline(
        MeshConfig(stage=2, data=2, expert=2), PipelineConfig("1f1b"), 4
    ),
    "gpipe-stage2-data2-expert2": Pipeline(
        MeshConfig(stage=2, data=2, expert=2), PipelineConfig("gpipe"), 4
    ),
}

RULES = {
    "every_step": ExchangeConfig("every_step"),
    "local_sgd": ExchangeConfig("local_sgd", period=2),
    "local_sgd-groups": ExchangeConfig("local_sgd", period=2, groups=2),
    "post_local_sgd": ExchangeConfig("post_local_sgd", period=2, first_local_step=1),
    "diloco": ExchangeConfig("diloco", period=2),
    "diloco-pretrained": ExchangeConfig("diloco", period=2, first_local_step=1),
    "streaming_diloco": ExchangeConfig("streaming_diloco", period=4, fragments=2, overlap=1),
    "easgd": ExchangeConfig("easgd", period=2, alpha=0.1),
    "adasum": ExchangeConfig("adasum"),
    "dpsgd": ExchangeConfig("dpsgd", graph="torus"),
    "sgp": ExchangeConfig("sgp"),
    "bfloat16": ExchangeConfig("every_step", compression="bfloat16"),
    "int8": ExchangeConfig("every_step", compression="int8"),
    "sign": ExchangeConfig("every_step", compression="sign"),
    "qsgd": ExchangeConfig("every_step", compression="qsgd"),
    "top_k": ExchangeConfig("every_step", compression="top_k", ratio=0.05, correction=0.5),
    "powersgd": ExchangeConfig("every_step", compression="powersgd", rank=2),
    "robust-median": ExchangeConfig(
        "every_step", robust="median", byzantine=1, worker_momentum=0.5, nearest_neighbors=True
    ),
    "robust-clipping": ExchangeConfig("diloco", period=2, robust="centered_clipping"),
    "int8-diloco": ExchangeConfig("diloco", compression="int8", period=2),
}


class Place(NamedTuple):
    """A mesh, how many replicas lie on it, and what they learn."""

    mesh: MeshConfig
    replicas: int
    model: str = "table"
    microbatches: int = 1


PLACES = {
    "replica8": Place(MeshConfig(replica=8), 8),
    "replica4-tensor2": Place(MeshConfig(replica=4, tensor=2), 4),
    "replica4-fsdp2-two-a-device": Place(MeshConfig(replica=4, data=1, fsdp=2), 8),
    "replica2-stage2-data2": Place(MeshConfig(replica=2, stage=2, data=2), 2, "text", 2),
}
# Every program takes its time to compile: where a rule sees nothing new, three stand for all.
EVERYWHERE = ("every_step", "diloco", "sign")
COMMON = ("replica4-tensor2", "replica4-fsdp2-two-a-device")

SERVERS = {
    "plain": AsynchronousConfig("plain", durations="exponential"),
    "staleness_aware": AsynchronousConfig("staleness_aware", durations="log_normal"),
    "dc_asgd": AsynchronousConfig("dc_asgd", compensation=0.5, durations="uniform"),
    "dc_asgd-adaptive": AsynchronousConfig("dc_asgd", compensation=0.1, compensation_decay=0.9),
    "hogwild": AsynchronousConfig("hogwild", share=0.5, slow_factor=2.0),
    "easgd": AsynchronousConfig("easgd", period=2, alpha=0.2, durations="exponential"),
    "buffered": AsynchronousConfig("buffered", period=1, durations="exponential"),
    "diloco": AsynchronousConfig("diloco", period=1, quorum=2, durations="exponential"),
    "backup_workers": AsynchronousConfig("backup_workers", durations="exponential"),
}
OF_MOVES = ("easgd", "buffered", "diloco")
"""A gradient is computed as for the others: one place for each."""
SERVERS_ON = {
    "replica4": Place(MeshConfig(replica=4, data=1), 4),
    "replica2-tensor2": Place(MeshConfig(replica=2, data=1, tensor=2), 4),
    "data2-fsdp2": Place(MeshConfig(data=2, fsdp=2), 4),
    "replica2-stage2-data2": Place(MeshConfig(replica=2, stage=2, data=2), 4, "text", 2),
}

MEMBERS_ON = {
    "replica8": Place(MeshConfig(replica=8), 8),
    "replica4-tensor2": Place(MeshConfig(replica=4, tensor=2), 4),
    "replica4-fsdp2-two-a-device": Place(MeshConfig(replica=4, data=1, fsdp=2), 8),
    "replica2-data2-fsdp2": Place(MeshConfig(replica=2, data=2, fsdp=2), 2, microbatches=2),
}

# Where members never talk, every place tells something; where they do, one.
ENSEMBLES = {
    "deep": tuple(MEMBERS_ON),
    "batch": ("replica4-fsdp2-two-a-device",),
    "snapshot": ("replica4-tensor2",),
}

# 65 characters divide over no mesh axis here, and neither do 341 hidden units.
TEXT = Specification(shape=(16,), classes=65)
IMAGES = Specification(shape=(8, 8, 3), classes=10)
TABLE = Specification(shape=(30,), classes=3)

GPT2 = TransformerConfig(layers=2, width=32, heads=4, bias=True, dropout=0.1)
LLAMA = TransformerConfig(
    layers=2,
    width=32,
    heads=4,
    key_value_heads=2,
    hidden=341,
    positions="rotary",
    normalization="rms",
    activation="swiglu",
    tied_head=False,
    remat="full",
)
# A choice of experts is discrete: where the k-th and the next probability are as close as their
# rounding, a mesh may choose another one, and all that follows is different. So the start is wide:
# logits are of order one, and the closest of these choices is 300 roundings away (the layout law
# measures it).
MIXTURE = TransformerConfig(
    layers=2,
    width=32,
    heads=4,
    hidden=40,
    experts=4,
    capacity_factor=1.0,
    dropout=0.1,
    initial_deviation=0.2,
    balance_loss=0.1,
    router_z_loss=0.01,
)


@dataclass(frozen=True)
class Case:
    """A model, and data of random numbers for it."""

    model: Any
    specification: Specification
    # Not Adam: it divides a gradient by its own size, and makes much of the rounding of small ones.
    optimizer: OptimizerConfig = OptimizerConfig(
        name="sgd", beta1=0.9, learning_rate=0.1, schedule="constant"
    )
    batch: int = 16
    kinked: bool = False
    """ReLU or max pooling on many activations: one that is zero but for its rounding, as there is
    in a batch out of ten or so, has one gradient or the other."""

    def batches(self, steps: int) -> list[dict[str, np.ndarray]]:
        generator = np.random.default_rng(1)
        shape, classes = self.specification.shape, self.specification.classes
        made = []
        for _ in range(steps):
            if len(shape) == 1 and self.specification is TEXT:
                tokens = generator.integers(
                    classes, size=(self.batch, shape[0] + 1), dtype=np.int32
                )
                made.append({"inputs": tokens[:, :-1], "targets": tokens[:, 1:]})
            else:
                inputs = generator.normal(size=(self.batch, *shape)).astype(np.float32)
                targets = generator.integers(classes, size=self.batch, dtype=np.int32)
                made.append({"inputs": inputs, "targets": targets})
        return made


MODELS = {
    "gpt2": Case(GPT2, TEXT),
    "llama": Case(LLAMA, TEXT),
    "mixture": Case(MIXTURE, TEXT),
    "mixture-dropless": Case(
        replace(MIXTURE, activation="swiglu", capacity_factor=None, remat="full"), TEXT
    ),
    "mlp": Case(MLPConfig(widths=(40, 341), activation="tanh", dropout=0.1), TABLE),
    "cnn": Case(CNNConfig(kind="lenet"), IMAGES, kinked=True),
    "resnet-group": Case(ResNetConfig(width=8, groups=4), IMAGES, kinked=True),
    "resnet-batch": Case(ResNetConfig(width=8, normalization="batch"), IMAGES, kinked=True),
    "linear": Case(LinearConfig(), TABLE),
    # It begins with nearly equal logits, and small steps keep them so.
    "lstm": Case(
        LSTMConfig(width=24),
        TEXT,
        OptimizerConfig(name="sgd", beta1=0.9, learning_rate=2.0, schedule="constant"),
    ),
}

# For replicas: there are many programs to compile. Most arrays can be cut for all compressions.
SMALL = {
    "text": Case(
        TransformerConfig(layers=2, width=16, heads=2, dropout=0.1, vocabulary_size=72), TEXT
    ),
    "table": Case(MLPConfig(widths=(64,), activation="tanh", dropout=0.1), TABLE),
}

Trace = list[tuple[float, Any]]


class Run:
    """A case on a mesh: its learner, with an optimizer that also remembers the gradients."""

    def __init__(
        self,
        case: Case,
        mesh: MeshConfig,
        devices: int = 8,
        microbatches: int = 1,
        pipeline: PipelineConfig | None = None,
        exchange: ExchangeConfig | None = None,
        asynchronous: AsynchronousConfig | None = None,
        ensemble: EnsembleConfig | None = None,
    ):
        """Raises UserError where case and mesh do not fit."""
        self.case = case
        self.mesh = mesh.build(jax.devices("cpu")[:devices])
        remember = optax.GradientTransformation(
            lambda parameters: jax.tree.map(jnp.zeros_like, parameters),
            lambda gradients, state, parameters=None: (gradients, gradients),
        )
        self.sharding = self.evaluated = batch_sharding(self.mesh, case.batch // microbatches)
        self.rows: tuple[int, ...] = (case.batch,)
        one = Synchronous(
            case.model,
            case.specification,
            optax.chain(remember, case.optimizer.build(100)),
            case.optimizer.learning_rate_schedule(100),
            self.mesh,
            seed=3,
            microbatches=microbatches,
            pipeline=pipeline,
            outside=() if exchange is asynchronous is ensemble is None else ("replica",),
        )
        self.learner: Learner = one
        if asynchronous is not None:
            self.learner = asynchronous.build(one)
        if exchange is not None:
            exchange = exchange.on(self.mesh)
            rule, count = exchange.build(steps=100), exchange.replicas or 1
            self.learner = Replicated(one, rule, count, exchange.plan, exchange.drops)

        if ensemble is not None:
            ensemble = ensemble.on(self.mesh)
            self.learner = ensemble.build(one, case.optimizer, 100, case.model)
            axes = tuple(a for a in ("data", "fsdp") if self.mesh.shape[a] > 1)
            if ensemble.side_by_side:
                self.rows = (self.learner.count, case.batch // self.learner.count)
                self.sharding = NamedSharding(self.mesh, P("replica", axes))
            self.evaluated = NamedSharding(self.mesh, P(axes))

    def init(self) -> Any:
        """The initial state, in NumPy."""
        with jax.set_mesh(self.mesh):
            return jax.device_get(self.learner.init())

    def batches(self, steps: int) -> list[dict[str, np.ndarray]]:
        """As the learner's steps have them."""
        return [
            {name: leaf.reshape(*self.rows, *leaf.shape[1:]) for name, leaf in rows.items()}
            for rows in self.case.batches(steps)
        ]

    def trace(self, initial: Any, steps: int = 4) -> Trace:
        """Loss and gradients (NumPy) of every step from the state `initial` (NumPy).

        With kinks, every step begins anew from `initial`: else the first step that meets one would
        decide about all that follow. What remains are its parameters and the last buffers.
        """
        made: Trace = []
        with jax.set_mesh(self.mesh):
            state = jax.device_put(initial, self.learner.shardings)
            for step, rows in enumerate(self.batches(steps)):
                batch = place(rows, self.sharding, self.rows[0]) | self.learner.events(step)
                state, metrics = self.learner.step(state, batch)
                if isinstance(self.learner, Ensemble):
                    metrics = self.learner.told(metrics)
                made.append((float(metrics["loss"]), jax.device_get(state.optimizer[0])))
                if self.case.kinked:
                    buffers = state.buffers
                    state = jax.device_put(initial, self.learner.shardings)
            self.state: Any = state
            if self.case.kinked:
                self.state = state._replace(buffers=buffers)
        return made

    def evaluate(self) -> Totals:
        """Totals of another batch, of which the last 3 rows are padding, by the trained state."""
        rows = self.case.batches(5)[-1]
        weights = (np.arange(self.case.batch) < self.case.batch - 3).astype(np.float32)
        with jax.set_mesh(self.mesh):
            batch = place(rows | {"weights": weights}, self.evaluated, self.case.batch)
            return jax.device_get(self.learner.evaluate(self.state, batch))


@pytest.fixture(autouse=True)
def quick_compiling() -> Iterator[None]:
    """The partitioner works as ever, machine code is made with little care: a quarter of the time.

    Commands that tests start compile as they do for users.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(params=MESHES)
def mesh(request: pytest.FixtureRequest) -> MeshConfig:
    chosen: MeshConfig = MESHES[request.param]
    return chosen


@pytest.fixture(params=PIPELINES)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    chosen: Pipeline = PIPELINES[request.param]
    return chosen


@pytest.fixture(params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    chosen: Case = MODELS[request.param]
    return chosen


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> ExchangeConfig:
    chosen: ExchangeConfig = RULES[request.param]
    return chosen


ROUNDING = ("bfloat16", "int8", "sign", "qsgd", "top_k")
"""Compressions that choose: a number as close to the border between two levels as its rounding may
become one or the other."""


class Replicas(NamedTuple):
    """A rule at a place."""

    exchange: ExchangeConfig
    place: Place
    case: Case

    @property
    def rounds(self) -> bool:
        return self.exchange.compression in ROUNDING

    def run(self, mesh: MeshConfig | None = None) -> "Run":
        """On the place's mesh, or on as few devices as another one has."""
        devices = 8 if mesh is None else 1
        place = self.place
        return Run(
            self.case,
            mesh or place.mesh,
            devices,
            microbatches=place.microbatches,
            exchange=self.exchange,
        )


@pytest.fixture(
    params=[
        (rule, place) for rule in RULES for place in PLACES if place in COMMON or rule in EVERYWHERE
    ],
    ids="-".join,
)
def replicas(request: pytest.FixtureRequest) -> Replicas:
    rule, place = RULES[request.param[0]], PLACES[request.param[1]]
    exchange = replace(rule, replicas=place.replicas)
    return Replicas(exchange, place, SMALL[place.model])


@pytest.fixture(params=SERVERS)
def server(request: pytest.FixtureRequest) -> AsynchronousConfig:
    chosen: AsynchronousConfig = SERVERS[request.param]
    return chosen


def run_at(place: Place, case: Case, mesh: MeshConfig | None, **learning: Any) -> "Run":
    """On the place's mesh, or on another one."""
    mesh = mesh or place.mesh
    return Run(case, mesh, mesh.named_devices, microbatches=place.microbatches, **learning)


class Workers(NamedTuple):
    """A server and its workers at a place."""

    asynchronous: AsynchronousConfig
    place: Place
    case: Case

    def run(self, mesh: MeshConfig | None = None) -> "Run":
        """On the place's mesh, or on another one."""
        return run_at(self.place, self.case, mesh, asynchronous=self.asynchronous)


@pytest.fixture(
    params=[
        (server, place)
        for server in SERVERS
        for place in SERVERS_ON
        if (SERVERS_ON[place].model == "table" or server in ("dc_asgd-adaptive", "backup_workers"))
        and (server not in OF_MOVES or place == "replica2-tensor2")
    ],
    ids="-".join,
)
def workers(request: pytest.FixtureRequest) -> Workers:
    server, place = SERVERS[request.param[0]], SERVERS_ON[request.param[1]]
    return Workers(server, place, SMALL[place.model])


class Members(NamedTuple):
    """An ensemble at a place."""

    rule: Any
    place: Place
    case: Case

    def run(self, mesh: MeshConfig | None = None) -> "Run":
        """On the place's mesh, or on another one."""
        return run_at(
            self.place,
            self.case,
            mesh,
            ensemble=EnsembleConfig(self.rule, members=self.place.replicas),
        )


@pytest.fixture(
    params=[(rule, place) for rule in ENSEMBLES for place in ENSEMBLES[rule]], ids="-".join
)
def members(request: pytest.FixtureRequest) -> Members:
    rule, place = request.param[0], MEMBERS_ON[request.param[1]]
    return Members(rule, place, SMALL[place.model])


@pytest.fixture
def rounding() -> tuple[str, ...]:
    """Compressions that choose between levels."""
    return ROUNDING


@pytest.fixture
def small() -> dict[str, Case]:
    """What replicas learn."""
    return SMALL


@pytest.fixture
def table() -> dict[str, Case]:
    """The table of models, for tests of one of them."""
    return MODELS


@pytest.fixture
def deep() -> Callable[[str], Case]:
    """A case of the table with 4 layers for 4 stages, and a table of tokens that divides."""

    def deepened(name: str) -> Case:
        if name not in _deep:
            case = MODELS[name]
            deeper = replace(case.model, layers=4, vocabulary_size=72)
            _deep[name] = replace(case, model=deeper)
        return _deep[name]

    return deepened


_deep: dict[str, Case] = {}


@pytest.fixture
def run() -> type[Run]:
    return Run


@pytest.fixture
def run_or_skip() -> Any:
    """A run; where the model cannot use an axis of the mesh, that is said by name, and skipped."""
    named = ("nothing of this model is split over `", "counts the places of a whole sequence")

    def make(case: Case, mesh: MeshConfig, **settings: Any) -> Run:
        try:
            return Run(case, mesh, **settings)
        except UserError as error:
            assert any(reason in str(error) for reason in named)
            pytest.skip(str(error))

    return make


class Alone(NamedTuple):
    """What a case does on one device."""

    initial: Any
    trace: Trace
    totals: Totals
    buffers: Any  # after the trace


_alone: dict[int, Alone] = {}


@pytest.fixture
def alone() -> Callable[[Case], Alone]:
    def reference(case: Case) -> Alone:
        if id(case) not in _alone:
            one = Run(case, MeshConfig(), devices=1)
            initial = one.init()
            trace = one.trace(initial)
            _alone[id(case)] = Alone(initial, trace, one.evaluate(), one.state.buffers)
        return _alone[id(case)]

    return reference
