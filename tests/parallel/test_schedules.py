"""Schedules: what every table must hold, and the bubbles of the papers."""

from fractions import Fraction

import numpy as np
import pytest

from research.errors import UserError
from research.parallel.schedules import IDLE, PipelineConfig, Schedule

SIZES = [(2, 2), (2, 8), (3, 5), (4, 4), (4, 16), (8, 8)]


def schedules() -> list[Schedule]:
    made = []
    for stages, microbatches in SIZES:
        made.append(PipelineConfig("gpipe").build(stages, microbatches))
        made.append(PipelineConfig("1f1b").build(stages, microbatches))
        if microbatches % stages == 0:
            for rounds in (1, 2, 3):
                made.append(PipelineConfig("interleaved", rounds).build(stages, microbatches))
    return made


def named(schedule: Schedule) -> str:
    return f"{schedule.name}-{schedule.stages}-{schedule.microbatches}-{schedule.rounds}"


@pytest.fixture(params=schedules(), ids=named)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    made: Schedule = request.param
    return made


def times(schedule: Schedule, table: np.ndarray) -> dict[tuple[int, int], int]:
    """The tick of every (unit, stage)."""
    found = {
        (int(unit), stage): tick
        for tick, row in enumerate(table)
        for stage, unit in enumerate(row)
        if unit != IDLE
    }
    assert len(found) == int((table != IDLE).sum())  # nothing is done twice
    return found


def test_every_microbatch_visits_every_stage_in_every_round_and_goes_back(schedule):
    for table in (schedule.forward, schedule.backward):
        visits = {
            (schedule.microbatch(unit), schedule.round(unit), stage)
            for unit, stage in times(schedule, table)
        }
        assert visits == {
            (microbatch, of_round, stage)
            for microbatch in range(schedule.microbatches)
            for of_round in range(schedule.rounds)
            for stage in range(schedule.stages)
        }


def test_what_a_stage_sends_is_taken_up_in_the_next_tick(schedule):
    """Forward to the next stage, and from the last to the first for another round; backward the
    other way. Nothing waits on the wire, so one array a direction is all that is in flight."""
    there, back = times(schedule, schedule.forward), times(schedule, schedule.backward)
    for (unit, stage), tick in there.items():
        if stage + 1 < schedule.stages:
            assert there[unit, stage + 1] == tick + 1
        elif schedule.round(unit) + 1 < schedule.rounds:
            assert there[unit + schedule.stages, 0] == tick + 1
    for (unit, stage), tick in back.items():
        if stage > 0:
            assert back[unit, stage - 1] == tick + 1
        elif schedule.round(unit) > 0:
            assert back[unit - schedule.stages, schedule.stages - 1] == tick + 1
        assert tick >= there[unit, stage]  # in the same tick, forward comes first


def test_the_bubble_is_that_of_the_paper(schedule):
    """Huang et al. 2019, §2.3: (S - 1) / (M + S - 1); Narayanan et al. 2021, §2.2: with R rounds
    the bubble's time is R times smaller beside the work, (S - 1) / R·M."""
    idle, work = schedule.stages - 1, schedule.microbatches * schedule.rounds
    assert schedule.bubble == pytest.approx(float(Fraction(idle, work + idle)))


def test_two_rounds_have_a_smaller_bubble_than_gpipe():
    gpipe = PipelineConfig("gpipe").build(4, 8)
    twice = PipelineConfig("interleaved", 2).build(4, 8)
    assert (gpipe.bubble, twice.bubble) == pytest.approx((3 / 11, 3 / 19))


def test_1f1b_keeps_as_many_inputs_for_any_number_of_microbatches():
    assert [PipelineConfig("1f1b").build(4, m).kept for m in (8, 16, 64)] == [7, 7, 7]
    assert [PipelineConfig("gpipe").build(4, m).kept for m in (8, 16, 64)] == [8, 16, 64]


def test_a_forward_pass_has_the_layers_where_training_has_them():
    for config in (PipelineConfig("gpipe"), PipelineConfig("interleaved", 2)):
        there = config.forward(4, 8)
        assert (there.backward == IDLE).all()
        np.testing.assert_array_equal(
            there.forward, config.build(4, 8).forward[: len(there.forward)]
        )
    assert PipelineConfig("1f1b").forward(4, 8).rounds == 1


def test_the_timeline_as_text():
    assert PipelineConfig("1f1b").build(2, 3).text() == (
        "stage 0 | F0 F1  · F2 B0  · B1 B2\nstage 1 |  · F0 B0 F1 B1 F2 B2  ·"
    )
    assert PipelineConfig("interleaved", 2).build(2, 2).text() == (
        "stage 0 | F0a F1a F0b F1b   ·   · B1b B0b B1a B0a\n"
        "stage 1 |   · F0a F1a F0b F1b B1b B0b B1a B0a   ·"
    )


@pytest.mark.parametrize(
    ("config", "stages", "microbatches", "words"),
    [
        (PipelineConfig(), 4, 2, ["2 microbatches", "4 stages", "microbatches 4", "stage 2"]),
        (PipelineConfig("gpipe"), 2, 1, ["1 microbatch is", "2 stages", "--mesh.stage 1"]),
        (PipelineConfig("interleaved"), 4, 6, ["6 do not divide", "stage = 4", "4 or 8"]),
        (PipelineConfig("interleaved", 0), 2, 2, ["--pipeline.rounds 0"]),
    ],
)
def test_numbers_that_do_not_fit_are_named(config, stages, microbatches, words):
    with pytest.raises(UserError) as error:
        config.build(stages, microbatches)
    for word in words:
        assert word in str(error.value)
