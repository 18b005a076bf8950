"""MQTT against a real mosquitto: discovery, confirmed delivery, the last will, a broker that goes and comes back."""

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from event_toys import MESSAGE, sink

from stillwatch.errors import UserError
from stillwatch.monitor.events import mqtt, sinks


@contextmanager
def broker(folder: Path, port: int = 0, more: str = "allow_anonymous true\n") -> Iterator[tuple[int, Any]]:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("mosquitto is not installed (make programs)")
    if not port:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    conf = folder / "mosquitto.conf"
    conf.write_text(f"listener {port} 127.0.0.1\npersistence false\nuser root\n{more}")
    with subprocess.Popen([program, "-c", str(conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 15
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None and time.monotonic() < end, "mosquitto did not start"
                time.sleep(0.02)
            yield port, process
        finally:
            process.terminate()


class Listener:
    """A second client of the broker."""

    def __init__(self, port: int):
        from paho.mqtt import client as paho

        self.got: list[tuple[str, str, int]] = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _, __, m: self.got.append((m.topic, m.payload.decode(), m.qos))
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        ready = threading.Event()
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(15)

    def until(self, topic: str, text: str) -> int:
        """The QoS of that message."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            for found, payload, qos in list(self.got):
                if found == topic and text in payload:
                    return qos
            time.sleep(0.02)
        raise AssertionError(f"no {text!r} on {topic}: {self.got}")

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def heard(listener: Listener, topic: str) -> list[str]:
    return [text for found, text, _ in listener.got if found == topic]


def test_events_states_and_discovery_are_confirmed(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener, to = Listener(port), sink(name="mqtt", host="127.0.0.1", port=port)
        try:
            to.send(MESSAGE, None)
            assert listener.until("stillwatch/cab/event", '"cab-1-1"') == 1  # QoS
            listener.until("stillwatch/cab/active", "ON")
            listener.until("stillwatch/status", "online")
            listener.until("homeassistant/binary_sensor/stillwatch_cab/config", '"availability_topic"')
            to.send(replace(MESSAGE, state="closed"), None)
            listener.until("stillwatch/cab/active", "OFF")
        finally:
            to.close()
            listener.until("stillwatch/status", "offline")
            listener.close()
    (config,) = heard(listener, "homeassistant/binary_sensor/stillwatch_cab/config")
    found = json.loads(config)
    assert (found["state_topic"], found["unique_id"]) == ("stillwatch/cab/active", "stillwatch_cab")
    assert [json.loads(text)["state"] for text in heard(listener, "stillwatch/cab/event")] == ["opened", "closed"]


def test_cameras_are_shown_before_anything_happens_and_a_test_shows_none(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener = Listener(port)
        to = sink(name="mqtt", host="127.0.0.1", port=port, prefix="home/watch")
        try:
            to.present(["cab", "yard"])
            for camera in ("cab", "yard"):
                listener.until(f"home/watch/{camera}/active", "OFF")
                listener.until(f"homeassistant/binary_sensor/home_watch_{camera}/config", f"home/watch/{camera}/event")
            to.send(replace(MESSAGE, camera="test", test=True), None)
            listener.until("home/watch/test/event", '"test"')
        finally:
            to.close()
            listener.until("home/watch/status", "offline")
            listener.close()
    assert not [topic for topic, _, _ in listener.got if topic.endswith(("test/active", "watch_test/config"))]


def test_cameras_are_announced_again_when_home_assistant_is_born(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener, to = Listener(port), sink(name="mqtt", host="127.0.0.1", port=port)
        config = "homeassistant/binary_sensor/stillwatch_cab/config"
        try:
            to.send(MESSAGE, None)
            listener.until(config, "cab")
            for payload in ("offline", "online"):
                listener.got.clear()
                listener.client.publish("homeassistant/status", payload, qos=1)
                listener.until("homeassistant/status", payload)
            listener.until(config, "cab")
            listener.until("stillwatch/cab/active", "ON")
        finally:
            to.close()
            listener.close()


def test_the_last_will_speaks_for_a_killed_watch(tmp_path: Path) -> None:
    with broker(tmp_path) as (port, _):
        listener = Listener(port)
        program = (
            "import time\nfrom stillwatch.monitor.events import sinks\nfrom stillwatch.monitor.config import Sink\n"
            f"to = sinks.open_sink(Sink(name='m', to={{'name': 'mqtt', 'host': '127.0.0.1', 'port': {port}}}))\n"
            "time.sleep(60)\n"
        )
        try:
            with subprocess.Popen([sys.executable, "-c", program]) as process:
                listener.until("stillwatch/status", "online")
                process.kill()
            listener.until("stillwatch/status", "offline")
        finally:
            listener.close()


def test_it_goes_on_when_the_broker_is_back_and_an_event_arrives_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "TIMEOUT", 0.5)
    with broker(tmp_path) as (port, _):
        to = sink(name="mqtt", host="127.0.0.1", port=port)
        to.send(MESSAGE, None)
    try:
        for _ in range(3):
            with pytest.raises(sinks.Refused, match=f"127.0.0.1:{port}: "):
                to.send(replace(MESSAGE, id="again"), None)
        monkeypatch.setattr(mqtt, "TIMEOUT", 20.0)
        with broker(tmp_path, port):
            listener = Listener(port)
            try:
                to.send(replace(MESSAGE, id="again"), None)
                to.send(replace(MESSAGE, id="last", state="closed"), None)
                listener.until("stillwatch/cab/event", '"last"')
                listener.until("stillwatch/status", "online")
                listener.until("homeassistant/binary_sensor/stillwatch_cab/config", "cab")  # it knew nothing of us
            finally:
                listener.close()
    finally:
        to.close()
    assert [json.loads(text)["id"] for text in heard(listener, "stillwatch/cab/event")] == ["again", "last"]


def test_a_broker_that_refuses_says_why_and_the_password_stays_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "TIMEOUT", 3.0)
    monkeypatch.setenv("BROKER", "hunter2")
    with broker(tmp_path, more="allow_anonymous false\n") as (port, _):
        to = sink(name="mqtt", host="127.0.0.1", port=port, user="me", password="$BROKER")
        try:
            with pytest.raises(sinks.Refused, match="refused us: Not authorized") as refused:
                to.send(MESSAGE, None)
            assert "hunter2" not in str(refused.value)
        finally:
            to.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "h", "port": "1883"}, "port = '1883': .*integer"),
        ({"host": "h", "port": 99999}, "port = 99999: .*65535"),
        ({"host": "h", "prefix": "a/#"}, "prefix = 'a/#': letters"),
        ({}, "host: missing; the options are: host, port, user"),
    ],
)
def test_a_bad_option_is_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"sink s: {words}"):
        sink(name="mqtt", **options)
