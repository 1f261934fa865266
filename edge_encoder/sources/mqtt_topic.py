"""A topic of an MQTT broker as a source: each message is one picture file, which is encoded and spooled.

    broker -> message (QoS 1, not yet acknowledged) -> encode -> spool -> acknowledged to the broker

The broker keeps the messages of the session while the box is down or full, and sends what was not acknowledged again.
A picture is lost only where its publisher asked for QoS 0. A message that comes again because its acknowledgement was
lost is recognised by its content among the last few. MQTT 5 is needed: it lets the box limit how many messages, and
how large ones, the broker may send. That limit does not count messages of QoS 0: those that find the box busy are
skipped. A retained message comes once for each session, not with each connection. Uses paho-mqtt (the extra
`edge-mqtt`), whose thread hands messages to the loop. Independent of HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import ssl
import urllib.parse
from collections import deque
from typing import TYPE_CHECKING, Any

from aeic.errors import InputError, RateError, remedy
from aeic_service.backoff import Backoff
from aeic_service.errors import Overloaded
from edge_encoder.errors import SpoolError, is_of_the_machine
from edge_encoder.service import EdgeService
from edge_encoder.source_settings import MqttSettings
from edge_encoder.source_status import SourceStatus
from edge_encoder.spool.record import CapturedFrom
from edge_encoder.submission.request import EncodeRequest

if TYPE_CHECKING:
    from paho.mqtt.client import Client, MQTTMessage

log = logging.getLogger("aeic.edge.mqtt")

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_IN_FLIGHT = 2  # messages that the broker may send without an acknowledgement
_OTHER_BYTES = 70_000  # of a message besides the picture: a topic has up to 65,535 bytes
_SESSION_SECONDS = 7 * 24 * 3600  # how long the broker keeps what arrives while the box is away
_KEEPALIVE_SECONDS = 60
_PAUSE_SECONDS = 0.5
_REMEMBERED = 16  # messages
_ATTEMPTS = 3  # at a message whose encoding fails unexpectedly


class MqttTopic:
    """One topic. `run()` until it is cancelled."""

    may_end = False

    def __init__(self, service: EdgeService, settings: MqttSettings) -> None:
        self.name = settings.name
        self.status = SourceStatus(settings.name, "mqtt")
        self._service = service
        self._settings = settings
        self._request = EncodeRequest.of_source(settings, service.settings.source_id)
        self._messages: asyncio.Queue[MQTTMessage] = asyncio.Queue()
        self._spooled: deque[bytes] = deque(maxlen=_REMEMBERED)
        box = service.settings
        self._pauses = Backoff(box.backoff_min_seconds, box.backoff_max_seconds)

    async def run(self) -> None:
        """Until cancelled. Without the extra it logs the remedy, is down, and waits: only a restart loads a package."""
        try:
            import paho.mqtt.client  # noqa: F401
        except ImportError:
            problem = f"paho-mqtt is not installed: {remedy('edge-mqtt')} and restart the edge"
            self.status.set("down", problem)
            log.error("mqtt %s: %s", self.name, problem)
            await asyncio.Event().wait()
        while True:
            problem = await self._session()
            self.status.failures_in_a_row += 1
            if self.status.set("down", problem):
                log.warning("mqtt %s: %s; it is connected again", self.name, problem)
            await asyncio.sleep(self._pauses.pause())

    async def _session(self) -> str:
        """One connection; returns why it ended."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[str] = loop.create_future()
        self._messages = asyncio.Queue()
        client = self._client(loop, ended)
        taking = asyncio.create_task(self._take_all(client))
        try:
            await asyncio.to_thread(self._connect, client)
            client.loop_start()
            return await ended
        except (OSError, ValueError) as error:  # ValueError: of the host's name, or a TLS file
            return getattr(error, "strerror", None) or type(error).__name__
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)
            with contextlib.suppress(Exception):
                client.disconnect()
            await asyncio.to_thread(client.loop_stop)

    def _client(self, loop: asyncio.AbstractEventLoop, ended: asyncio.Future[str]) -> Client:
        """A client whose callbacks, which run in its thread, only hand over to the loop."""
        from paho.mqtt.client import Client, MQTTv5
        from paho.mqtt.enums import CallbackAPIVersion
        from paho.mqtt.subscribeoptions import SubscribeOptions

        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._settings.client_id or f"aeic-{self._request.source_id}",
            protocol=MQTTv5,
            manual_ack=True,
            reconnect_on_failure=False,
        )
        url = urllib.parse.urlsplit(self._settings.url.get_secret_value())
        if url.username is not None:
            password = None if url.password is None else urllib.parse.unquote(url.password)
            client.username_pw_set(urllib.parse.unquote(url.username), password)

        def end(problem: str) -> None:
            if not ended.done():
                ended.set_result(problem)

        def hand_over(call: Any, *arguments: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(call, *arguments)

        def on_connect(_: Client, __: object, ___: object, reason: Any, ____: object) -> None:
            if reason.is_failure:
                hand_over(end, f"the broker refused the connection: {reason}")
            else:
                client.subscribe(
                    self._settings.topic,
                    options=SubscribeOptions(qos=1, retainHandling=SubscribeOptions.RETAIN_SEND_IF_NEW_SUB),
                )

        def on_subscribe(_: Client, __: object, ___: int, reasons: list[Any], ____: object) -> None:
            if any(reason.is_failure for reason in reasons):
                hand_over(end, f"the broker refused the topic: {reasons[0]}")
            else:
                hand_over(self._up)

        def on_disconnect(_: Client, __: object, ___: object, reason: Any, ____: object) -> None:
            hand_over(end, f"the connection ended: {reason}")

        def arrived(message: MQTTMessage) -> None:
            waiting = self._messages.qsize()
            if waiting >= 2 * _IN_FLIGHT:
                end("the broker sends more messages at once than it was allowed")
            elif waiting >= _IN_FLIGHT and message.qos == 0:
                self._count("busy")
            else:
                self._messages.put_nowait(message)

        def on_message(_: Client, __: object, message: MQTTMessage) -> None:
            hand_over(arrived, message)

        client.on_connect, client.on_subscribe = on_connect, on_subscribe
        client.on_disconnect, client.on_message = on_disconnect, on_message
        return client

    def _connect(self, client: Client) -> None:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        url = urllib.parse.urlsplit(self._settings.url.get_secret_value())
        if url.scheme == "mqtts":
            client.tls_set_context(ssl.create_default_context(cafile=self._settings.tls_ca))
        properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # it has no types
        properties.ReceiveMaximum = _IN_FLIGHT
        properties.MaximumPacketSize = self._service.settings.max_body_bytes + _OTHER_BYTES
        properties.SessionExpiryInterval = _SESSION_SECONDS
        port = url.port or _PORTS[url.scheme]
        client.connect(url.hostname or "", port, _KEEPALIVE_SECONDS, clean_start=False, properties=properties)

    def _up(self) -> None:
        self._pauses.reset()
        self.status.failures_in_a_row = 0
        if self.status.set("up"):
            log.info("mqtt %s: subscribed", self.name)

    async def _take_all(self, client: Client) -> None:
        while True:
            message = await self._messages.get()
            await self._take(message)
            client.ack(message.mid, message.qos)

    async def _take(self, message: MQTTMessage) -> None:
        """Returns when the picture is in the spool, or refused."""
        data = bytes(message.payload)
        digest = hashlib.sha256(data).digest()
        if message.dup and digest in self._spooled:
            return
        encode_request = dataclasses.replace(self._request, captured_from=CapturedFrom.CLOCK)
        failures = 0
        while True:
            try:
                if len(data) > self._service.settings.max_body_bytes:
                    raise InputError(f"it has {len(data)} bytes: raise AEIC_EDGE_MAX_BODY_BYTES or send smaller ones")
                await self._service.take(data, encode_request)
            except (InputError, RateError) as error:
                log.warning("mqtt %s: a message is refused: %s", self.name, error)
                self._count("refused")
                self.status.refused += 1
                return
            except (Overloaded, SpoolError) as error:  # the broker keeps the next ones meanwhile
                log.debug("mqtt %s: a message waits: %s", self.name, error)
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            except Exception as error:
                if is_of_the_machine(error):  # not of the picture, which would be lost with an acknowledgement
                    self.status.failures_in_a_row += 1
                    problem = f"the machine cannot encode now: {str(error) or type(error).__name__}"[:300]
                    if self.status.set("down", problem):
                        log.error("mqtt %s: a message waits: %s", self.name, problem)
                    await asyncio.sleep(self._pauses.pause())
                    continue
                failures += 1
                log.exception("mqtt %s: a message cannot be encoded", self.name)
                if failures < _ATTEMPTS:
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                self._count("unreadable")
                return
            if self.status.state == "down":
                self._up()
            self._spooled.append(digest)
            self._count("taken")
            self.status.took()
            return

    def _count(self, outcome: str) -> None:
        self._service.metrics.source_frames.labels(self.name, outcome).inc()
