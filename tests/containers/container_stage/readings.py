"""What the shop saw: probes, bookings and the ledger, as they come in."""

import json
import time

STEADY = 3
"""So many answers in a row make a state, as a kubelet's thresholds do."""


class Readings:
    """Reads the shop's file as it grows."""

    def __init__(self, path):
        self._path = path
        self._offset = 0
        self.all = []

    def read(self):
        """Take in what has come."""
        if not self._path.exists():
            return
        with self._path.open() as file:
            file.seek(self._offset)
            while (line := file.readline()).endswith("\n"):
                self._offset = file.tell()
                self.all.append(json.loads(line))

    def of(self, service, kind, *, since=0.0, until=float("inf")):
        """The readings of one service of one kind: "/readyz", "/livez" or "booked"."""
        return [
            each
            for each in self.all
            if each.get("service") == service
            and ((kind == "booked" and "booked" in each) or each.get("probe") == kind)
            and since <= each["at"] <= until
        ]

    def is_ready(self, service):
        """Whether the latest answers all say so; None while they differ, or there are none."""
        latest = [each["status"] for each in self.of(service, "/readyz")[-STEADY:]]
        if len(latest) < STEADY:
            return None
        if all(status == 200 for status in latest):
            return True
        return None if 200 in latest else False

    def first(self, service, *, ready, since):
        """When it was first reported (not) ready, in seconds after `since`; None for never."""
        for each in self.of(service, "/readyz", since=since):
            if (each["status"] == 200) is ready:
                return each["at"] - since
        return None

    def last_change(self, service, *, ready, since):
        """When it became (not) ready for good, in seconds after `since`; None if it did not."""
        found = None
        for each in self.of(service, "/readyz", since=since):
            if (each["status"] == 200) is not ready:
                found = None
            elif found is None:
                found = each["at"] - since
        return found

    def reasons(self, service, *, since):
        """What its readiness probe said when it said no."""
        said = self.of(service, "/readyz", since=since)
        return list(dict.fromkeys(each["said"] for each in said if each["status"] != 200))

    def dead_probes(self, service, *, since=0.0, until=float("inf")):
        """Liveness probes that a kubelet would count, once it had been alive."""
        failed, alive = 0, False
        for each in self.of(service, "/livez", until=until):
            alive = alive or each["status"] == 200
            failed += alive and each["status"] != 200 and each["at"] >= since
        return failed

    def booked(self, service):
        """How many orders are booked, by the latest count."""
        counts = self.of(service, "booked")
        return counts[-1]["booked"] if counts else 0

    def acked(self, service):
        """How many orders Kafka has taken for it."""
        counts = self.of(service, "booked")
        return counts[-1]["acked"] if counts else 0

    def booking_again(self, service, *, since):
        """Seconds from `since` until the count of booked orders grew; None if it never did."""
        counts = self.of(service, "booked")
        before = [each["booked"] for each in counts if each["at"] < since]
        known = before[-1] if before else 0
        for each in counts:
            if each["at"] >= since and each["booked"] > known:
                return each["at"] - since
        return None

    def last(self, key):
        """The latest reading that has this key."""
        return next((each[key] for each in reversed(self.all) if key in each), None)


def until(what, condition, seconds, *, every=0.05):
    """Wait for a fact.

    Raises:
        AssertionError: It is still none after so many seconds.
    """
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"after {seconds:g} s still not: {what}"
        time.sleep(every)
    return found
