"""What the clients did about an outage is in the flight recorder, in few words."""


async def test_what_clients_did_is_remembered_beside_the_transitions(service):
    await service.consumer.aclose()
    await service.running

    recorder = service.monitor.recorder
    noted = {}
    for event in recorder.events():
        noted.setdefault(event["event"], []).append(event)

    (paused,) = noted["handlers paused"]
    (resumed,) = noted["handlers resumed"]
    assert paused["source"] == resumed["source"] == service.redis.health.name
    assert resumed["after"] <= paused["ago"]
    letters = noted["dead letter written"]
    assert {(each["topic"], each["error"]) for each in letters} == {(service.topic, "ValueError")}
    assert sum(each.get("times", 1) for each in letters) == 2
    assert noted["lane lost"][0]["source"] == service.redis.health.name
    assert {each["slot"] for each in noted["lane opened"]} >= {0}
    assert any(each["state"] == "down" for each in noted["state changed"])
    assert "poison" not in str(noted)
