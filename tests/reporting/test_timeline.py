"""The picture of a schedule: its boxes are the units of the table, its empty ground the bubble."""

import pytest
from matplotlib.patches import Rectangle

from research.parallel.schedules import PipelineConfig
from research.reporting import timeline


@pytest.mark.parametrize("config", [PipelineConfig("1f1b"), PipelineConfig("interleaved", 2)])
def test_boxes_cover_all_but_the_bubble(tmp_path, config):
    schedule = config.build(4, 8)
    figure = timeline(schedule, tmp_path / "timeline.svg")
    axes = figure.axes[0]
    boxes = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert len(boxes) == 2 * schedule.units * schedule.stages
    covered = sum(box.get_width() for box in boxes)
    ground = axes.get_xlim()[1] * schedule.stages
    assert 1 - covered / ground == pytest.approx(schedule.bubble)
    assert f"bubble {schedule.bubble:.1%}" in axes.get_title("left")
    assert (tmp_path / "timeline.svg").read_text().startswith("<?xml")
    for box in boxes:  # none on top of another
        others = [b for b in boxes if b.get_y() == box.get_y() and b.get_x() > box.get_x()]
        assert all(b.get_x() >= box.get_x() + box.get_width() for b in others)
