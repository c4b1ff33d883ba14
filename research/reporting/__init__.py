"""What people look at: plots of runs, and pictures of what lies where.

`loss_curves` draws the losses of run folders, `placement` which device holds which part of an
array, `timeline` who does what when in a pipeline. All return a matplotlib figure that shows itself
in a notebook, and need no display.
"""

from research.reporting.curves import Curve, loss_curves, read_curve
from research.reporting.placement import placement
from research.reporting.timeline import timeline

__all__ = ["Curve", "loss_curves", "placement", "read_curve", "timeline"]
