"""MQTT 3.1.1 with Home Assistant discovery.

Topics: PREFIX/status (online, offline), PREFIX/CAMERA/event, PREFIX/CAMERA/active (ON, OFF).
"""

import hashlib
import json
import platform
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from stillwatch.errors import UserError

if TYPE_CHECKING:  # paho is imported when a broker is named
    from paho.mqtt.client import Client, ConnectFlags, MQTTMessage, MQTTMessageInfo
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from stillwatch.monitor.events.sinks import Message

TIMEOUT = 10.0  # seconds for any answer


class Refused(Exception):
    """A sink's no; the words may be shown."""


class Mqtt:
    """One prefix per watch: the last will covers all cameras."""

    stateful: ClassVar[bool] = True
    files: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, host: Annotated[str, Field(min_length=1)], port: Annotated[int, Field(ge=1, le=65535)] = 1883,
        user: str | None = None, password: str | None = None, prefix: str = "stillwatch",
        discovery: str = "homeassistant", tls: bool = False,
    ):  # fmt: skip
        for key, topic in (("prefix", prefix), ("discovery", discovery)):
            if not re.fullmatch(r"[\w/-]+", topic):
                raise UserError(f"{key} = {topic!r}: letters, digits, _, - and / make a topic")
        self._host, self._prefix, self._discovery = f"{host}:{port}", prefix, discovery
        self._address, self._user, self._password, self._tls = (host, port), user, password, tls
        self._cameras: list[str] = []
        self._on: dict[str, set[str]] = {}
        self._lock = threading.Lock()  # of these two and of the order of what is said of them; never held while waiting
        self._why = "no connection"
        self._up = threading.Event()
        self._client = self._connect()

    def _connect(self) -> "Client":
        from paho.mqtt import client as paho

        # The same name after a start, so that the broker ends the old session, and its will, before the new one; not
        # the same on another machine, which would throw us out
        name = hashlib.sha256(f"{platform.node()} {self._prefix}".encode()).hexdigest()[:12]
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=f"stillwatch-{name}")
        client.will_set(f"{self._prefix}/status", "offline", qos=1, retain=True)
        if self._user is not None:
            client.username_pw_set(self._user, self._password)
        if self._tls:
            client.tls_set()
        client.reconnect_delay_set(1, 30)
        client.on_connect = self._connected
        client.on_message = self._announce_again
        client.on_disconnect = lambda *_: self._up.clear()
        client.connect_timeout = TIMEOUT
        client.connect_async(*self._address, keepalive=30)
        client.loop_start()
        return client

    def _connected(
        self, client: "Client", _: object, __: "ConnectFlags", reason: "ReasonCode", ___: "Properties | None"
    ) -> None:
        if reason.is_failure:
            self._why = f"refused us: {reason}"
            return
        with self._lock:
            client.publish(f"{self._prefix}/status", "online", qos=1, retain=True)
            for camera in self._cameras:  # a broker that was set up anew knows nothing of us
                self._show(client, camera)
            self._up.set()
        client.subscribe(f"{self._discovery}/status", qos=1)

    def _announce_again(self, client: "Client", _: object, message: "MQTTMessage") -> None:
        """Home Assistant started anew: it may have forgotten us."""
        if message.payload == b"online":
            with self._lock:
                for camera in self._cameras:
                    self._show(client, camera)

    def present(self, cameras: Sequence[str]) -> None:
        with self._lock:
            for camera in cameras:
                if camera not in self._cameras:
                    self._cameras.append(camera)
                    if self._up.is_set():
                        self._show(self._client, camera)

    def _show(self, client: "Client", camera: str) -> None:
        topic, name = f"{self._prefix}/{camera}", f"{self._prefix}_{camera}".replace("/", "_")
        device = {"identifiers": [name], "name": camera, "manufacturer": "Stillwatch"}
        text = json.dumps({
            "name": "Alarm", "unique_id": name, "state_topic": f"{topic}/active",
            "json_attributes_topic": f"{topic}/event", "availability_topic": f"{self._prefix}/status",
            "device_class": "safety", "device": device,
        })  # fmt: skip
        client.publish(f"{self._discovery}/binary_sensor/{name}/config", text, qos=1, retain=True)
        client.publish(f"{topic}/active", "ON" if self._on.get(camera) else "OFF", qos=1, retain=True)

    def send(self, event: "Message", clip: Path | None) -> None:
        """Returns when the broker has confirmed it."""
        if not self._up.wait(TIMEOUT):
            raise Refused(f"{self._host}: {self._why}")
        camera = event.camera
        if not event.test:  # the state goes first: it may be said twice, the event is to arrive once
            self.present([camera])
            with self._lock:
                on = self._on.setdefault(camera, set())
                (on.discard if event.state == "closed" else on.add)(event.id)
                sent = self._client.publish(f"{self._prefix}/{camera}/active", "ON" if on else "OFF", 1, True)
            self._confirm(sent)
        text = json.dumps(event.payload(), ensure_ascii=False)
        self._confirm(self._client.publish(f"{self._prefix}/{camera}/event", text, 1))

    def _confirm(self, sent: "MQTTMessageInfo") -> None:
        try:
            sent.wait_for_publish(TIMEOUT)
            if sent.is_published():
                return
            why = "did not confirm it"
        except (RuntimeError, ValueError) as error:
            why = str(error)
        # paho would send it when it is connected again, and so would whoever called: it is to arrive once
        self._disconnect()
        self._up.clear()
        self._client = self._connect()
        raise Refused(f"{self._host}: {why}")

    def _disconnect(self) -> None:
        self._client.disconnect()
        with suppress(AttributeError):  # paho forgets its thread as that ends, perhaps between its own two looks
            self._client.loop_stop()

    def close(self) -> None:
        try:
            if self._up.is_set():
                self._client.publish(f"{self._prefix}/status", "offline", qos=1, retain=True).wait_for_publish(1.0)
        except (RuntimeError, ValueError):
            pass  # its will says so
        finally:
            self._disconnect()
