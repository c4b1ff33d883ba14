"""`research inspect`: a step's memory, messages and schedule, as tables and as JSON."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from research.data import federate
from research.experiment import (
    AggregationConfig,
    Experiment,
    FederatedConfig,
    ImagesConfig,
    MeshConfig,
    MLPConfig,
    OptimizerConfig,
    PartitionConfig,
    ResNetConfig,
    TableConfig,
    TextConfig,
    TransformerConfig,
)
from research.inspection import inspect_experiment
from research.reporting.inspection import size_text

ROOT = Path(__file__).parents[1]


def rows(content: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["kind"], "×".join(row["axes"])): row for row in content["traffic"]}


def test_a_step_is_described_in_json(config: Path, research: Any) -> None:
    words = ["--json", "--mesh.data", 2, "--mesh.fsdp", 2, "--mesh.tensor", 2]
    content = json.loads(research("inspect", config, *words).stdout)
    assert content["mesh"] == {
        "replica": 1,
        "stage": 1,
        "data": 2,
        "fsdp": 2,
        "expert": 1,
        "context": 1,
        "tensor": 2,
    }
    placed = {each["name"]: each for each in content["placed"]}
    query = placed["blocks/attention/query/kernel"]
    assert query["shape"] == [2, 32, 4, 8] and query["split"] == ["", "fsdp", "tensor", ""]
    assert query["bytes"] == 4 * 2 * 32 * 32 // 4
    memory = content["memory"]
    assert memory["parameters"] == sum(each["bytes"] for each in placed.values())
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters"], abs=16)  # Adam's moments
    assert memory["total"] >= memory["parameters"] + memory["optimizer"] + memory["temporaries"]
    messages = rows(content)
    assert messages["all-gather", "fsdp"]["ratio"] == pytest.approx(1, abs=0.01)
    assert messages["all-reduce", "tensor"]["calls"] > 0
    assert content["unit"] == "tokens"
    # Twice the products forward, and no more than is computed again.
    assert 0.5 < content["flops"] / content["model_flops"] < 1.5


def test_a_pipeline_is_drawn_with_its_ticks_and_bubble(config: Path, research: Any) -> None:
    words = ["--mesh.stage", 2, "--optimizer.microbatches", 4, "--data.batch", 8]
    printed = research("inspect", config, *words).stdout
    assert "1f1b: 4 microbatches through 2 stages, 9 ticks (9 in the program), bubble" in printed
    assert "stage 0 | F0 F1" in printed
    assert "collective-permute over stage" in printed
    assert "from stage to stage: 5 + 4 ticks · A 1/2" in printed


@pytest.mark.parametrize("rule", ["dc_asgd", "diloco", "backup_workers"])
def test_what_a_server_and_workers_send_is_stated(research: Any, rule: str) -> None:
    """Gradients over `replica` as over `data`; and once more what a worker has fetched, or its
    parameters, where they began, and its optimizer."""
    words = ["--mesh.replica", 2, "--mesh.fsdp", 1, "--asynchronous.rule", rule, "--json"]
    content = json.loads(research("inspect", ROOT / "configs/python_stdlib.py", *words).stdout)
    for row in content["traffic"]:
        assert row["expected"] is None or row["ratio"] == pytest.approx(1, abs=0.01)
    fetched = [row for row in content["traffic"] if "what a worker has" in str(row)]
    assert len(fetched) == (rule != "backup_workers")


ROUNDS = Experiment(
    model=MLPConfig(widths=(16,)),
    data=TableConfig(batch=4),
    optimizer=OptimizerConfig(name="sgd", clip=None),
    mesh=MeshConfig(replica=8, data=1),
    federated=FederatedConfig("fedavg", cohort=16, epochs=2),
    partition=PartitionConfig("iid", clients=32),
)


@pytest.mark.parametrize(
    ("rule", "passes", "kinds"),
    [
        ("fedavg", 1, {"all-reduce"}),
        ("fedavg by the median", 1, {"all-gather"}),
        ("scaffold", 1, {"all-reduce", "reduce-scatter", "all-gather"}),
        ("ditto", 2, {"all-reduce", "reduce-scatter", "all-gather"}),
        ("fedbuff", 1, {"all-reduce", "reduce-scatter", "all-gather"}),
    ],
)
def test_of_a_round_what_clients_send_and_compute_is_stated(
    rule: Any, passes: int, kinds: set[str]
) -> None:
    """Bytes over `replica`; FLOPs of the steps that a mean client takes, by hand."""
    rule, _, robust = rule.partition(" by the ")
    how = AggregationConfig(rule=robust or "mean")
    federated = replace(
        ROUNDS.federated, rule=rule, concurrency=32, aggregation=how, weighting="uniform"
    )
    found = inspect_experiment(replace(ROUNDS, federated=federated))
    stated = {row.kind for row in found.traffic if row.expected}
    assert stated == kinds
    for row in found.traffic:  # but for single numbers, and who the clients are
        assert row.expected is None or 0 <= row.wire - row.expected <= 64 * 11
    assert all(row.expected or "statistics" in row.note for row in found.traffic)
    clients = federate(TableConfig().load(), ROUNDS.partition).train
    places = 4 * np.ceil(clients.sizes / 4).mean()  # of an epoch, those that only fill up too
    # Forward and the weights' gradients of 30 × 16 and 16 × 2, and what the second passes back.
    products = 2 * (2 * 30 * 16 + 3 * 16 * 2)
    assert found.flops == pytest.approx(passes * products * places / clients.sizes.mean(), rel=0.01)
    assert found.unit == "examples" and found.memory.total > found.memory.batch > 0


def test_clients_may_be_split_over_the_other_axes(research: Any) -> None:
    """The messages of their steps are counted; theory has those of rounds."""
    if "RESEARCH_DATA" not in os.environ:
        pytest.skip("RESEARCH_DATA is not set")
    config = ROOT / "configs/hospitals.py"
    words = ["--mesh.replica", 2, "--mesh.fsdp", 2, "--json", "--federated.plan", "auto"]
    content = json.loads(research("inspect", config, *words).stdout)
    assert {"replica", "fsdp"} <= {axis for row in content["traffic"] for axis in row["axes"]}
    moves = rows(content)["all-reduce", "replica"]
    assert 0 < moves["expected"] <= moves["wire"] <= moves["expected"] + 64
    assert "this is the step by scan" in content["warnings"][0]


def test_it_needs_neither_the_data_nor_the_devices(
    research: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Llama 3 8B on 256 devices: its corpus is nowhere, and neither are they."""
    content = json.loads(research("inspect", ROOT / "configs/llama3_8b.py", "--json").stdout)
    assert content["parameters"] == 8_030_261_248
    assert content["mesh"]["fsdp"] == 64 and content["mesh"]["tensor"] == 4
    for row in content["traffic"]:
        assert row["expected"] is None or row["ratio"] == pytest.approx(1, abs=0.01)
    # 6 N + 12 layers · width · context, and what `remat="full"` computes again.
    assert 1.1 < content["flops"] / content["model_flops"] < 1.34


@pytest.mark.parametrize(
    "experiment",
    [
        Experiment(model=MLPConfig(), data=TableConfig(), mesh=MeshConfig(data=8)),
        Experiment(
            model=ResNetConfig(width=8, groups=4), data=ImagesConfig(), mesh=MeshConfig(data=8)
        ),
    ],
    ids=["table", "images"],
)
def test_of_other_models_the_gradients_are_known(experiment: Experiment) -> None:
    found = inspect_experiment(experiment)
    assert found.unit == "examples" and found.model_flops is None
    gradients = next(row for row in found.traffic if row.expected)
    assert (gradients.kind, gradients.axes) == ("all-reduce", ("data",))
    assert gradients.ratio == pytest.approx(1, abs=0.01)


def test_a_large_parameter_that_is_whole_is_a_warning() -> None:
    model = TransformerConfig(layers=1, width=512, heads=8, hidden=1001)
    found = inspect_experiment(Experiment(model, TextConfig(batch=8), mesh=MeshConfig(tensor=8)))
    assert any(
        each.startswith("blocks/mlp/up/kernel [1, 512, 1001] is whole on every device (2.0 MiB)")
        for each in found.warnings
    )
    up = next(each for each in found.placed if each.name == "blocks/mlp/up/kernel")
    assert up.is_whole and up.is_large


@pytest.mark.parametrize("data", [TextConfig(), ImagesConfig(), TableConfig()])
def test_shapes_are_known_before_the_data(data: Any) -> None:
    assert data.specification() == data.load().specification


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--devices", 3, "--mesh.data", 2], "mesh data 2 = 2 devices, but 3 are here"),
        (["--topology", "v5e:2x4", "--devices", 2], "--topology brings its own devices"),
        (["--mesh.stage", 2], "1 microbatch is fewer than the 2 stages"),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[Any], sentence: str, config: Path, research: Any
) -> None:
    done = research("inspect", config, *words, status=2)
    assert sentence in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_topology_is_compiled_for_or_named(config: Path, research: Any) -> None:
    words = ["inspect", config, "--json", "--topology", "v5e:2x4", "--mesh.fsdp", 8]
    try:
        import libtpu  # noqa: F401
    except ImportError:
        assert "make setup EXTRA=tpu" in research(*words, status=2).stderr
        pytest.skip("compiles for TPUs with jax[tpu], which is not installed")
    content = json.loads(research(*words).stdout)
    assert content["platform"] == "tpu"
    assert rows(content)["all-gather", "fsdp"]["ratio"] == pytest.approx(1, abs=0.01)


def test_sizes_have_units() -> None:
    texts = [size_text(size) for size in (0, 999, 1000, 2.5e6, 3.14e9, 5e12, 7e15)]
    assert texts == ["0 B", "999 B", "1.0 KB", "2.5 MB", "3.1 GB", "5.0 TB", "7000.0 TB"]
