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


async def test_standard_input_is_read(command):
    code, out, err = await command("lint", "-", "--json", "--set", "grace-period=60", stdin=GOOD)
    assert (code, err) == (1, "")
    finding, summary = map(json.loads, out.splitlines())
    assert (finding["event"], summary["event"]) == ("finding", "summary")
    assert (finding["code"], finding["file"]) == ("grace-period-short", "standard input")
    assert summary["findings"] == {"error": 1, "warning": 0}


async def test_findings_are_in_color_and_whole_on_a_terminal(terminal, tmp_path):
    path = tmp_path / "k8s.yaml"
    path.write_text(GOOD.replace("/livez", "/readyz"))
    async with terminal("lint", str(path)) as running:
        assert await running.ended() == 1
    assert "\x1b[1;31merror" in running.shown
    assert "[liveness-depends]" in running.shown
    assert "-> Use /livez" in running.shown
