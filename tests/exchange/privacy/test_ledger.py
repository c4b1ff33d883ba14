"""The ledger counts, by kind, and an account stops before the budget does."""

import jax
import pytest

from research.errors import UserError
from research.exchange.privacy import Account, Budget, Event, Ledger, epsilon_of, ledger
from research.exchange.privacy.accounting import QUICK

EVENTS = [Event(1.0, 0.125), Event(2.0, 0.125), Event(1.0, 0.25)]
BUDGET = Budget(2.0, 1e-5, "example")


def account(event: Event) -> Account:
    return Account(BUDGET, event, lambda state: state)


def written(*numbers: int) -> Ledger:
    book = ledger.empty()
    for number in numbers:
        book = jax.jit(ledger.after, static_argnums=1)(book, EVENTS[number])
    return book


def test_kinds_are_counted_in_the_order_in_which_they_came() -> None:
    assert ledger.spent(written()) == []
    book = written(1, 1, 0, 2, 0, 1)
    assert ledger.spent(book) == [(EVENTS[1], 3), (EVENTS[0], 2), (EVENTS[2], 1)]


def test_a_run_ends_at_the_last_step_that_fits() -> None:
    event = Event(1.0, 0.03125)
    mine = account(event)
    end = mine.last_step(ledger.empty(), 0, 10_000)
    assert 0 < end < 10_000
    assert epsilon_of([(event, end)], BUDGET.delta, QUICK) <= BUDGET.epsilon
    assert epsilon_of([(event, end + 1)], BUDGET.delta, QUICK) > BUDGET.epsilon
    assert mine.last_step(ledger.empty(), 0, end - 5) == end - 5
    assert mine.observe(ledger.empty()) == {"epsilon": 0.0, "delta": BUDGET.delta}


def test_what_was_spent_before_stays_counted() -> None:
    """Steps of less noise before a resume leave fewer of more noise after it."""
    later = account(EVENTS[1])
    fresh = later.last_step(ledger.empty(), 0, 10_000)
    assert later.last_step(written(0), 1, 10_000) - 1 < fresh
    with pytest.raises(UserError, match=r"ε = .* one more step of noise 1 would cross"):
        account(EVENTS[0]).last_step(written(0, 0, 0), 3, 10)


def test_in_turn_a_pass_is_paid_when_it_begins() -> None:
    event = Event(4.0, 0.25, 4)
    book, mine, told = ledger.empty(), account(event), []
    for _ in range(9):
        book = ledger.after(book, event)
        told.append(mine.observe(book)["epsilon"])
    assert ledger.spent(book) == [(event, 9)]
    assert told[0] == told[3] < told[4] == told[7] < told[8]
    assert "batches in turn, PLD accountant) is spent by 9 steps: 9 of noise 4 and 4 groups" in (
        mine.in_words(book)
    )
    end = mine.last_step(ledger.empty(), 0, 1_000)
    assert end % 4 == 0 and 0 < end < 1_000
    for other, reason in ((Event(4.0, 0.2, 5), "in 4 groups, so far"), (EVENTS[0], "be drawn")):
        with pytest.raises(UserError, match=reason):
            account(other).last_step(book, 9, 10)


def test_a_full_ledger_is_named() -> None:
    book = ledger.empty()
    for number in range(ledger.KINDS):
        book = ledger.after(book, Event(100.0 + number, 0.125))
    account(Event(100.0, 0.125)).last_step(book, 16, 17)
    with pytest.raises(UserError, match="has 16 kinds of steps already"):
        account(Event(50.0, 0.125)).last_step(book, 16, 17)
