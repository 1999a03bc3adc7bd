"""`resilient-io lint` as a process."""

import json

GOOD = """\
kind: Deployment
metadata: {name: orders}
spec:
  template:
    spec:
      terminationGracePeriodSeconds: 40
      containers:
        - name: orders
          ports: [{name: http, containerPort: 8080}]
          livenessProbe: {httpGet: {path: /livez, port: http}}
          readinessProbe:
            httpGet: {path: /readyz, port: http}
            periodSeconds: 2
            failureThreshold: 2
"""


async def test_it_reads_standard_input_and_takes_times(command):
    code, out, err = await command("lint", "-", "--json", "--set", "grace=60", stdin=GOOD)
    assert (code, err) == (1, "")
    told = [json.loads(line) for line in out.splitlines()]
    assert [each["event"] for each in told] == ["finding", "finding", "summary"]
    assert (told[0]["code"], told[0]["file"], told[0]["line"]) == (
        "grace-short",
        "standard input",
        6,
    )
    assert told[-1]["findings"] == {"error": 1, "warning": 0, "note": 1}


async def test_on_a_terminal_it_shows_findings_in_colour_and_whole(terminal, tmp_path):
    path = tmp_path / "k8s.yaml"
    path.write_text(GOOD.replace("/livez", "/readyz"))
    async with terminal("lint", str(path)) as running:
        assert await running.ended() == 1
    assert "\x1b[1;31merror" in running.shown
    assert "[liveness-depends]" in running.shown
    assert "-> Ask /livez." in running.shown
