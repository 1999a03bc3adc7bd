"""The flight recorder contains the reactions of clients to an outage."""


async def test_reactions_of_clients_are_recorded_with_the_transitions(service):
    await service.consumer.aclose()
    await service.running

    recorder = service.monitor.recorder
    recorded = {}
    for event in recorder.events():
        recorded.setdefault(event["event"], []).append(event)

    (paused,) = recorded["handlers paused"]
    (resumed,) = recorded["handlers resumed"]
    assert paused["source"] == resumed["source"] == service.redis.health.name
    assert resumed["after"] <= paused["ago"]
    letters = recorded["dead letter written"]
    assert {(each["topic"], each["error"]) for each in letters} == {(service.topic, "ValueError")}
    assert sum(each.get("times", 1) for each in letters) == 2
    assert recorded["connection lost"][0]["source"] == service.redis.health.name
    assert {each["slot"] for each in recorded["connection opened"]} >= {0}
    assert any(each["state"] == "down" for each in recorded["state changed"])
    assert "poison" not in str(recorded)
