"""Records are checked before they wait; reports describe their outcomes."""

import pytest
from aiokafka.errors import MessageSizeTooLargeError

from resilient_io import Progress
from resilient_io.kafka.errors import KafkaOutcomeUnknown
from resilient_io.kafka.producer import DeliveryFailure, DeliveryReport
from resilient_io.kafka.producer.records import check_rare_fields, to_bytes


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (([("name", "text")], None, None), TypeError),
        (([("name",)], None, None), TypeError),
        (([b"name"], None, None), TypeError),
        (([("\ud800", b"")], None, None), ValueError),
        ((None, -1, None), ValueError),
        ((None, True, None), TypeError),
        ((None, "0", None), TypeError),
        ((None, None, 1.5), TypeError),
        ((None, None, -1), ValueError),
    ],
)
def test_invalid_fields_are_rejected_before_the_record_waits(given, error):
    with pytest.raises(error):
        check_rare_fields(*given)


def test_mutable_data_is_copied():
    data = bytearray(b"abc")
    copy = to_bytes("value", data)
    data[0] = 0
    assert copy == b"abc"
    with pytest.raises(TypeError, match="value_serializer="):
        to_bytes("value", "text")


def test_a_report_selects_failures_by_progress_and_raises_the_first():
    def failure(position, error, progress):
        return DeliveryFailure(
            position=position,
            topic="t",
            partition=0,
            key=None,
            value=b"v",
            headers=None,
            timestamp_ms=None,
            error=error,
            progress=progress,
        )

    unknown = KafkaOutcomeUnknown(
        "lost", dependency="k", operation="send", progress=Progress.MAYBE_APPLIED
    )
    refused = failure(1, MessageSizeTooLargeError(), Progress.REFUSED)
    report = DeliveryReport(
        delivered=1, failures=(failure(0, unknown, unknown.progress), refused), taken=3
    )
    assert not report.ok
    assert report.of(Progress.REFUSED) == [refused]
    for _ in range(2):
        with pytest.raises(KafkaOutcomeUnknown) as caught:
            report.check()
        assert caught.value.__notes__ == ["2 of 3 records failed, this one first"]
    DeliveryReport(delivered=3, taken=3).check()
    assert not DeliveryReport(complete=False).ok
