"""What people look at: plots of runs, and pictures of what lies where.

`loss_curves` draws the losses of run folders, `exchange_curves` any metric over bytes and over the
seconds of a network, `placement` which device holds which part of an array, `timeline` who does
what when in a pipeline, `generations` what became of a run that lost machines, `goodputs` what that
costs a large one, `client_labels` which client has which labels, `reliability_diagram` and
`nll_over_members` how an ensemble was judged. All return a matplotlib figure that shows itself in a
notebook, and need no display.
"""

from research.reporting.clients import client_labels, client_table
from research.reporting.communication import (
    exchange_curves,
    of_one_model,
    read_run,
    virtual_seconds,
)
from research.reporting.curves import Curve, loss_curves, read_curve
from research.reporting.ensembles import (
    ensemble_table,
    nll_over_members,
    print_ensemble,
    reliability_diagram,
)
from research.reporting.generations import generations, goodputs, read_generations
from research.reporting.placement import placement
from research.reporting.timeline import timeline

__all__ = [
    "Curve",
    "client_labels",
    "client_table",
    "ensemble_table",
    "exchange_curves",
    "generations",
    "goodputs",
    "loss_curves",
    "nll_over_members",
    "of_one_model",
    "placement",
    "print_ensemble",
    "read_curve",
    "read_generations",
    "read_run",
    "reliability_diagram",
    "timeline",
    "virtual_seconds",
]
