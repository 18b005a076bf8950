"""The hub's files for many boards: every metric that they name is one that /metrics has; promtool takes the rules."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from web_toys import opened

from stillwatch.monitor.events.outbox import SinkStatus

FLEET = Path(__file__).parent.parent.parent / "deploy" / "fleet"


class Post:
    def status(self) -> list[SinkStatus]:
        return [SinkStatus("hub", "postgres")]


def test_every_metric_of_rules_and_dashboard_is_one_that_boards_have(tmp_path: Path) -> None:
    rules = (FLEET / "alerts.yml").read_text()
    board = json.loads((FLEET / "grafana" / "stillwatch.json").read_text())
    shown = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    wanted = {name for text in (rules, *shown) for name in re.findall(r"\b(?:stillwatch|process)_\w+", text)}
    with opened(tmp_path, post=Post()) as street:
        street.board.update("cab", state="live", status="ok")
        text = street.ask("/metrics")[2].decode()
        families = list(text_string_to_metric_families(text))
    # Labels that come with the first event have no sample before
    there = {sample.name for one in families for sample in one.samples} | {f"{one.name}_total" for one in families}
    assert len(wanted) > 10 and wanted <= there
    labels = {sample.name: set(sample.labels) for one in families for sample in one.samples}
    assert labels["stillwatch_camera_watching"] == {"camera"} and labels["stillwatch_sink_pending"] == {"sink"}
    assert len(re.findall(r"alert: (\w+)", rules)) >= 5


def test_what_the_compose_file_mounts_is_here_or_is_made_by_its_head() -> None:
    text = (FLEET / "compose.yml").read_text()
    mounted = re.findall(r"- \./([\w./-]+):", text)
    made = {"boards.json", "token", "passwords"}
    assert len(mounted) > 8 and all((FLEET / name).is_file() or name in made for name in mounted)
    assert all(f"{name}" in text.partition("services:")[0] for name in made)


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed: make programs")
def test_promtool_takes_rules_and_config() -> None:
    for words in (["rules", "alerts.yml"], ["config", "--syntax-only", "prometheus.yml"]):
        done = subprocess.run(["promtool", "check", *words], cwd=FLEET, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
