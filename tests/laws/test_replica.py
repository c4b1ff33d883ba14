"""Law 3: replicas one to a device, many to a device one after another, or side by side, are the
same."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from research.parallel.mesh import MeshConfig

REPLICAS = 4
# Side by side, products are of more rows at once, and sums are taken in another order: tolerance
# and reason are those of test_layout.py. A mean over seats first, then devices, is another order.
RELATIVE = 2e-5


def assert_close(one: Any, other: Any) -> None:
    for (path, leaf), its in zip(
        jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True
    ):
        scale = max(np.abs(its).max(), 1e-3)
        np.testing.assert_allclose(
            leaf, its, rtol=0, atol=RELATIVE * scale, err_msg=jax.tree_util.keystr(path)
        )


def test_a_plan_changes_nothing(rule: Any, table: Any, run: Any) -> None:
    case = table["mlp"]
    exchange = replace(rule, replicas=REPLICAS)
    assert case.model.dropout > 0  # and draws are those of a replica, wherever it is

    def states(devices: int, plan: str) -> tuple[list[float], Any]:
        plan_of = replace(exchange, plan=plan)
        here = run(case, MeshConfig(replica=devices), devices, exchange=plan_of)
        trace = here.trace(here.init(), 5)
        return [loss for loss, _ in trace], jax.device_get(here.state)

    losses, state = states(REPLICAS, "scan")
    assert max(losses) - min(losses) > 1e-3
    for devices, plan in ((2, "scan"), (2, "vmap")):
        its_losses, its_state = states(devices, plan)
        assert its_losses == pytest.approx(losses, rel=RELATIVE), (devices, plan)
        assert_close(its_state, state)
