"""What a scene came to, for both services, and what must hold for ours whatever happens."""

import time

from container_stage.readings import until

_RECORDS = 30
"""Log records that an outage may cost at most: a few for each transition, none for each call."""

_LATE = 1.0
"""Seconds after the end of a fault in which a probe may still tell of it."""


class Account:
    """Measures a scene from its fault on.

    Args:
        place: Where it is.
        began: When the fault began.
    """

    def __init__(self, place, began):
        self.place = place
        self.began = began
        self.healed = None
        self.books = None
        self._restarts = {service.name: service.restarts for service in place.services}

    def heal(self, at):
        """The fault ended."""
        self.healed = at

    def settle(self, seconds=60.0):
        """Send no more, and wait until ours has booked every order, and the other does no more."""
        place = self.place
        place.tell("stop")
        place.until(
            "our service has booked every order",
            lambda readings: readings.booked("ours") >= readings.acked("ours"),
            seconds,
        )
        place.until("our service is ready", lambda readings: readings.is_ready("ours"), seconds)
        self._let_the_other_end()
        for _ in range(10):
            self.books = place.ledger()
            # An order is announced after it was booked.
            if not self.books["ours"]["unannounced"]:
                break

    def _let_the_other_end(self, still=4.0, seconds=30.0):
        readings = self.place.readings
        moved, count = time.monotonic(), -1

        def ended():
            nonlocal moved, count
            readings.read()
            if readings.booked("plain") != count:
                moved, count = time.monotonic(), readings.booked("plain")
            return count >= readings.acked("plain") or time.monotonic() - moved > still

        started = time.monotonic()
        until(
            "the other ended", lambda: ended() or time.monotonic() - started > seconds, 2 * seconds
        )

    def outcome(self):
        """The scene's figures, by service."""
        return {service.name: self._of(service) for service in self.place.services}

    def _of(self, service):
        readings, name = self.place.readings, service.name
        records, lines = service.records(since=self.began)
        healed = self.healed or self.began
        unready = readings.first(name, ready=False, since=self.began)
        if unready is not None and unready > healed - self.began + _LATE:
            unready = None
        return {
            "seconds": round(healed - self.began, 1),
            "unready_after": _rounded(unready),
            "ready_after": _rounded(readings.last_change(name, ready=True, since=healed)),
            "booking_after": _rounded(readings.booking_again(name, since=healed)),
            "said": readings.reasons(name, since=self.began),
            "records": records,
            "lines": lines,
            "dead_probes": readings.dead_probes(name, since=self.began),
            "restarts": service.restarts - self._restarts[name],
            "killed_for_memory": service.state()["OOMKilled"],
            "healthcheck": service.health,
            **self.books[name],
        }

    def check(self, outcome, *, records=_RECORDS, repeated=None):
        """What must hold for our service."""
        ours = outcome["ours"]
        log = self.place.ours.log()
        assert ours["sent"] > 0
        lost = {each: ours[each] for each in ("lost", "pending", "dead", "unannounced")}
        assert lost == {"lost": 0, "pending": 0, "dead": 0, "unannounced": 0}, log[-3000:]
        # The same orders, counted in Kafka and in Redis.
        assert ours["in_kafka"] >= ours["sent"]
        assert ours["booked"] >= ours["sent"]
        assert repeated is None or ours["repeated"] <= repeated
        assert ours["restarts"] == 0
        assert not ours["killed_for_memory"]
        assert ours["dead_probes"] == 0
        # Docker asks every 10 s: one that was just started again may not have been asked yet.
        assert ours["healthcheck"] in {"healthy", "starting"}, self.place.ours.state()["Health"]
        assert ours["records"] <= records, log[-3000:]
        assert "Traceback" not in log, log[-3000:]


def _rounded(seconds):
    return None if seconds is None else round(seconds, 2)
