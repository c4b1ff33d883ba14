"""One curve a way: the mean of the seeds that got to its end."""

import numpy as np
from matplotlib.figure import Figure

from research.reporting.comparison import draw_curves


def test_a_seed_that_ended_early_is_drawn_and_is_in_no_mean() -> None:
    axes = Figure().add_subplot()
    whole = [([1, 2, 3], [3.0, 2.0, 1.0]), ([1, 2, 3], [5.0, 4.0, 3.0])]
    draw_curves(axes, {"way": [([1, 2], [9.0, 90.0]), *whole]})
    [mean] = [line for line in axes.lines if line.get_label() == "way"]
    np.testing.assert_array_equal(mean.get_xydata(), [[1, 4], [2, 3], [3, 2]])
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.lines]
    assert [9.0, 90.0] in drawn and len(drawn) == 4


def test_of_one_seed_there_is_one_curve() -> None:
    axes = Figure().add_subplot()
    draw_curves(axes, {"way": [([1, 2], [9.0, 90.0])]})
    assert len(axes.lines) == 1
