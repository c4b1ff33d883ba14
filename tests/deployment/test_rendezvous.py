"""Coordination services that are started before they are needed: nobody waits for one."""

import time

from research.deployment.elastic.rendezvous import Rendezvous


def test_a_service_that_died_before_it_served_is_replaced() -> None:
    made = Rendezvous()
    try:
        made._next._process.kill()
        made.begin("127.0.0.1", 2)
        assert made.address() is None  # at once: the controller has others to listen to
        deadline = time.monotonic() + 120
        while (address := made.address()) is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert address.startswith("127.0.0.1:") and made.lives()
        made.end()
        assert not made.lives()
    finally:
        made.close()
