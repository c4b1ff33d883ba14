"""The picture of a run that lost machines has a line for each of its generations."""

import json

import pytest

from research.errors import UserError
from research.reporting import generations, goodputs


def test_a_line_a_generation_from_its_first_step_to_its_end(tmp_path):
    rows = [
        {"processes": 4, "mesh": "data 4", "first_step": 8.0, "ended": 12.0, "restored": None},
        {"processes": 3, "mesh": "data 3", "first_step": 17.0, "ended": 30.0, "restored": 90},
        {"processes": 3, "mesh": "data 3", "first_step": None, "ended": 31.0, "restored": None},
    ]
    causes = ["process 1 (pid 7) was killed by SIGKILL", "more processes", "a fault"]
    lines = [
        json.dumps(row | {"step": 100 + i, "cause": cause})
        for i, (row, cause) in enumerate(zip(rows, causes, strict=True))
    ]
    (tmp_path / "generations.jsonl").write_text("\n".join(lines))
    axes = generations(tmp_path, tmp_path / "run.svg").axes[0]
    drawn = [line.get_xydata().tolist() for line in axes.lines if len(line.get_xdata()) == 2]
    assert drawn == [[[8, 0], [12, 100]], [[17, 90], [30, 101]]]
    words = [text.get_text() for text in axes.texts]
    assert words == ["4 processes, data 4", "killed", "3 processes, data 3", "it is back"]
    assert (tmp_path / "run.svg").stat().st_size
    with pytest.raises(UserError, match="no run of an elastic launch"):
        generations(tmp_path / "other")


def test_goodput_has_a_curve_for_each_way_to_train():
    axes = goodputs(days=1, seeds=1).axes[0]
    assert len(axes.lines) == 3 and all(len(line.get_xdata()) == 6 for line in axes.lines)
