"""The run folder and its metrics file, after crashes."""

from pathlib import Path

import pytest

from research.errors import UserError
from research.training.folder import RunFolder
from research.training.metrics import JsonLines, keep_until, read


def test_a_torn_last_line_is_left_out_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.5}\n{"step": 2, "loss": 3.25}\n{"step": 3, "lo')
    assert [record["step"] for record in read(path)] == [1, 2]
    assert keep_until(path, 2) == [{"step": 1, "loss": 3.5}, {"step": 2, "loss": 3.25}]
    lines = JsonLines(path)
    lines.log({"step": 3, "loss": 3.0})
    lines.close()
    assert path.read_text().splitlines()[-1] == '{"step": 3, "loss": 3.0}'
    assert len(path.read_text().splitlines()) == 3


def test_records_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 8)))
    assert [record["step"] for record in keep_until(path, 4)] == [1, 2, 3, 4]
    assert [record["step"] for record in read(path)] == [1, 2, 3, 4]
    assert keep_until(path, 0) == [] == read(path)


def test_a_file_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "metrics.jsonl") == []
    assert keep_until(tmp_path / "metrics.jsonl", 3) == []


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write("data", {"name": "ü"})
    with pytest.raises(TypeError):
        folder.write("data", {"name": object()})
    assert folder.read("data") == {"name": "ü"}
    with pytest.raises(UserError, match=r"environment.json is missing"):
        folder.read("environment")


def test_the_lock_is_one_process_at_a_time_and_goes_with_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.locked(), pytest.raises(UserError, match="is in use by process"):
        folder.locked().__enter__()
    with folder.locked():
        pass
