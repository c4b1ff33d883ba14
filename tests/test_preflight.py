"""What is tried before the first step."""

from pathlib import Path

import jax
import pytest

from research.errors import UserError
from research.preflight import check_room


def test_a_state_that_the_disk_cannot_hold_is_told_before_the_first_step(tmp_path: Path) -> None:
    small, large = (jax.ShapeDtypeStruct((n,), "float32") for n in (2, 2**50))
    check_room(tmp_path, {"a": small})
    with pytest.raises(UserError, match=r"takes 4,503,599,627\.4 MB, and host .* MB free for "):
        check_room(tmp_path, {"a": small, "b": large})
