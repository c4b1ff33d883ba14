"""Configs as data: to JSON and back, and what does not fit, named."""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest

from research.configuration import check_type, from_json, nearest, to_json
from research.errors import UserError
from research.experiment import (
    CNNConfig,
    Experiment,
    ImagesConfig,
    LinearConfig,
    LSTMConfig,
    MeshConfig,
    MLPConfig,
    OptimizerConfig,
    ResNetConfig,
    RunConfig,
    SyntheticConfig,
    TableConfig,
    TextConfig,
    TransformerConfig,
)

EXPERIMENTS = [
    Experiment(),
    Experiment(
        model=TransformerConfig(key_value_heads=2, remat="dots", dtype="bfloat16"),
        data=TextConfig(source="books/**/*.txt", vocabulary="bpe"),
        optimizer=OptimizerConfig(name="sgd", clip=None, arguments={"nesterov": 1.0}),
        mesh=MeshConfig(data=2, fsdp=-1),
        run=RunConfig(directory="runs/ü", keep_every=7),
    ),
    Experiment(model=MLPConfig(widths=()), data=TableConfig()),
    Experiment(model=MLPConfig(widths=(20, 13)), data=ImagesConfig(name="mnist")),
    Experiment(model=CNNConfig(kind="lenet"), data=ImagesConfig()),
    Experiment(model=ResNetConfig(normalization="batch"), data=ImagesConfig(name="cifar10_5k")),
    Experiment(model=LinearConfig(), data=TableConfig()),
    Experiment(model=LinearConfig(), data=SyntheticConfig(alpha=0.5)),
    Experiment(model=LSTMConfig(width=64), data=TextConfig(vocabulary="character")),
]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_comes_back_from_a_run_folder_as_it_was(experiment: Experiment) -> None:
    written = json.dumps(experiment.to_json())
    assert Experiment.from_json(json.loads(written)) == experiment


def test_a_field_that_a_newer_version_added_has_its_default() -> None:
    content = Experiment().to_json()
    del content["run"]["seed"]
    assert Experiment.from_json(content) == Experiment()


def change(content: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, name = path.split(".")
    inner = content
    for parent in parents:
        inner = inner[parent]
    inner[name] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("run.stepz", 3, "experiment.run has no field `stepz`: did you mean `steps`?"),
        ("run.steps", "3", "experiment.run.steps is '3', but must be a whole number"),
        ("run.steps", True, "experiment.run.steps is True, but must be a whole number"),
        ("run.tensorboard", 1, "experiment.run.tensorboard is 1, but must be True or False"),
        ("optimizer.clip", "no", "must be a number or None"),
        ("optimizer.arguments", {"b1": "x"}, "experiment.optimizer.arguments is"),
        ("model.type", "GRUConfig", "experiment.model: GRUConfig is none of TransformerConfig, "),
        ("model.positions", "learnd", "did you mean 'learned'?"),
        ("model.heads", None, "experiment.model.heads is None, but must be a whole number"),
        ("mesh", 8, "experiment.mesh is 8, but must be a MeshConfig"),
    ],
)
def test_what_does_not_fit_is_named(path: str, value: Any, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        Experiment.from_json(change(Experiment().to_json(), path, value))
    assert sentence in str(error.value)


def test_types_are_checked_as_python_means_them() -> None:
    check_type(float, 3, "rate")  # a whole number is a number
    check_type(tuple[int, ...], (), "widths")
    check_type(Literal[18] | None, None, "depth")
    for annotation, value in [
        (int, 3.0),
        (float, True),
        (float, "3"),
        (tuple[int, ...], [3]),
        (tuple[int, ...], (3, "4")),
        (Literal[18], 34),
        (str | None, 3),
    ]:
        with pytest.raises(UserError, match="field is .*, but must be"):
            check_type(annotation, value, "field")


@dataclass(frozen=True)
class Pair:
    first: tuple[int, ...] = (1,)
    second: "str | None" = None


def test_tuples_come_back_as_tuples() -> None:
    pair = Pair(first=(3, 4), second="x")
    assert from_json(Pair, json.loads(json.dumps(to_json(pair)))) == pair
    assert replace(pair, first=()) == from_json(Pair, to_json(replace(pair, first=())))


def test_the_nearest_name_is_offered_or_else_all() -> None:
    assert nearest("widht", ["width", "heads"]) == "did you mean `width`?"
    assert nearest("zzz", ["width", "heads"]) == "it has width, heads"
