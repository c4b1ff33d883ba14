"""Pictures: they show what a run folder holds, and where the mesh holds it."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from research.errors import UserError
from research.reporting import Curve, loss_curves, placement
from research.reporting.placement import copies


def folder_of_a_run(path: Path, unit: str = "tokens") -> Path:
    shape = [64] if unit == "tokens" else [28, 28, 1]
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"data": {"batch": 4}}))
    (path / "data.json").write_text(json.dumps({"unit": unit, "shape": shape}))
    lines = [
        {"step": 1, "loss": 5.5},
        {"step": 10, "loss": 3.0},
        {"step": 20, "loss": 2.0, "validation_loss": 2.5},
    ]
    torn = '{"step": 30, "lo'  # by a crash
    (path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n" + torn)
    return path


def test_losses_of_a_run(tmp_path):
    file = tmp_path / "made" / "losses.svg"
    figure = loss_curves([folder_of_a_run(tmp_path / "run")], file)
    training, validation = figure.axes[0].lines
    assert training.get_xydata().tolist() == [[1, 5.5], [10, 3.0], [20, 2.0]]
    assert validation.get_xydata().tolist() == [[20, 2.5]]
    assert figure.axes[0].get_ylabel() == "loss (nats a token)"
    (tokens,) = figure.axes[0].child_axes
    figure.draw_without_rendering()
    assert tokens.get_xlim()[1] == pytest.approx(figure.axes[0].get_xlim()[1] * 4 * 64)
    assert file.read_text().startswith("<?xml")
    again = tmp_path / "again.svg"
    loss_curves([tmp_path / "run"], again)
    assert again.read_bytes() == file.read_bytes()  # no date, no random names


def test_runs_that_cannot_be_drawn(tmp_path):
    run = folder_of_a_run(tmp_path / "run")
    with pytest.raises(UserError, match="do not compare"):
        loss_curves([run, folder_of_a_run(tmp_path / "images", "examples")])
    with pytest.raises(UserError, match="at least one run"):
        loss_curves([])
    (run / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no step yet"):
        loss_curves([run])
    with pytest.raises(UserError, match="does not exist"):
        loss_curves([tmp_path / "nowhere"])


def test_several_runs_are_named(tmp_path):
    records = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 4.0}]
    figure = loss_curves([Curve(name, "examples", None, records) for name in ("sgd", "adamw")])
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sgd", "adamw"]
    assert not axes.child_axes  # how many examples a step has is not known


def test_copies_of_an_array():
    # Devices count data slowest, tensor fastest: device = 4 data + 2 fsdp + tensor.
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def drawn(shape, *spec):
        return [
            {(part.row, part.column): part.device for part in copy}
            for copy in copies(shape, NamedSharding(mesh, PartitionSpec(*spec)))
        ]

    assert drawn((6, 4), "tensor", "fsdp") == [
        {(0, 0): 0, (1, 0): 1, (0, 1): 2, (1, 1): 3},
        {(0, 0): 4, (1, 0): 5, (0, 1): 6, (1, 1): 7},
    ]
    assert drawn((8, 3), ("data", "fsdp")) == [
        {(0, 0): 0, (0, 1): 2, (0, 2): 4, (0, 3): 6},
        {(0, 0): 1, (0, 1): 3, (0, 2): 5, (0, 3): 7},
    ]
    assert drawn((5,)) == [{(0, 0): device} for device in range(8)]
    assert drawn((2, 2, 2), "data", "fsdp", "tensor") == [
        {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3, (2, 0): 4, (2, 1): 5, (3, 0): 6, (3, 1): 7}
    ]


def test_placement_shows_every_part(tmp_path):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    whole = jax.ShapeDtypeStruct((4, 4), "float32", sharding=NamedSharding(mesh, PartitionSpec()))
    figure = placement({"kernel": whole}, tmp_path / "placement.png")
    assert len(figure.axes[0].patches) == 8
    assert (tmp_path / "placement.png").stat().st_size > 0
    with pytest.raises(UserError, match="kernel lies on no mesh"):
        placement({"kernel": jax.numpy.zeros(4)})


def test_matplotlib_is_imported_by_what_draws():
    code = "import sys, research.reporting; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
