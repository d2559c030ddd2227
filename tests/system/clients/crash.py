"""paho-mqtt clients that live on while the broker dies: they keep what they know, come back by themselves, and publish
without being told each message. A JSON command per line on stdin, a JSON list per event on stdout. See durability/crowd.rs.

Each client has one thread, which does all that it does: publishing from another one while the connection is made would put
a new message before those that are sent again."""

import json
import random
import socket
import sys
import threading
import time

import paho.mqtt.client as paho

LOOP_S = 0.02
RELEASED = paho.mqtt_ms_resend_pubrel
clients = {}
writing = threading.Lock()


def emit(*event):
    line = json.dumps(event)
    with writing:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


class Paho(paho.Client):
    """paho-mqtt 2.1.0 forgets, on a second attempt to connect, that it has sent PUBREL for a message, and publishes that
    message again, as a new one [MQTT-4.3.3-1]."""

    def _messages_reconnect_reset_out(self):
        released = [m for m in self._out_messages.values() if m.state == RELEASED]
        super()._messages_reconnect_reset_out()
        for message in released:
            message.state = RELEASED


class Client(threading.Thread):
    def __init__(self, command):
        super().__init__(daemon=True)
        self.client_name = command["client"]
        self.address = command["address"]
        self.keep_alive_s = command["keep_alive_s"]
        self.filters = command["subscribe"]
        self.clean = command["clean"]
        self.random = random.Random(command["seed"])
        self.is_away = False
        self.is_connected = False
        self.wants = None
        # Publishing: topics, qos, retain, window, per_second, padding, clear_every.
        self.publishing = command.get("publish")
        self.is_paused = True
        self.is_idle_told = True
        self.next_at = 0.0
        self.issued = {}
        self.last = {}
        self.waiting = {}
        # Subscriptions that come and go: filters, qos, per_second.
        self.toggling = command.get("toggle")
        self.held = {}
        self.toggles = {}
        self.paho = Paho(
            paho.CallbackAPIVersion.VERSION2,
            client_id=command["id"],
            clean_session=self.clean,
            reconnect_on_failure=False,
        )
        if command["user"]:
            self.paho.username_pw_set(*command["user"])
        if self.publishing:
            self.paho.max_inflight_messages_set(self.publishing["window"])
        if self.publishing:
            self.paho.on_log = self.on_log
        self.paho.on_connect = self.on_connect
        self.paho.on_message = self.on_message
        self.paho.on_publish = self.on_publish
        self.paho.on_subscribe = self.on_subscribe
        self.paho.on_unsubscribe = self.on_unsubscribe
        self.subscribing = {}

    def tell(self, event, *fields):
        emit(self.client_name, event, *fields)

    def run(self):
        try:
            while True:
                self.connection()
        except Exception as error:  # the test shall see it, whatever it is
            self.tell("error", repr(error))

    def connection(self):
        if self.is_away:
            self.work_off(self.wants)
            time.sleep(LOOP_S)
            return
        try:
            self.paho.connect(*self.address, self.keep_alive_s)
        except OSError:
            time.sleep(LOOP_S)
            return
        while self.paho.loop(LOOP_S) == paho.MQTT_ERR_SUCCESS:
            self.work_off(self.wants)
            if self.is_connected:
                self.publish_what_is_due()
                self.toggle_what_is_due()
            self.rest()
        self.is_connected = False
        self.subscribing.clear()
        self.toggles.clear()
        self.tell("closed")
        # A CONNECT that is refused again and again shall not fill the log.
        time.sleep(LOOP_S)

    def work_off(self, wants):
        if wants is None:
            return
        self.wants = None
        match wants["do"]:
            case "away":
                self.is_away = True
                if self.is_connected and self.random.random() < 0.5:
                    self.paho.disconnect()
                elif self.paho.socket():
                    self.paho.socket().shutdown(socket.SHUT_RDWR)
                self.tell("away")
            case "back":
                self.is_away = False
            case "pause":
                self.is_paused = True
                self.is_idle_told = False
                self.rest()
            case "resume":
                self.is_paused = False
                self.next_at = time.monotonic()
            case "subscribe":
                self.subscribe(wants["filters"])

    def rest(self):
        if self.is_paused and not self.is_idle_told and not self.waiting and not self.toggles:
            self.is_idle_told = True
            self.tell("idle", self.issued, self.last)

    def subscribe(self, filters):
        _, mid = self.paho.subscribe([(f, q) for f, q in filters])
        self.subscribing[mid] = [f for f, _ in filters]

    def publish_what_is_due(self):
        p = self.publishing
        if not p or self.is_paused:
            return
        now = time.monotonic()
        self.next_at = max(self.next_at, now - 0.2)
        while self.next_at <= now and len(self.waiting) < 2 * p["window"]:
            self.next_at += 1 / p["per_second"]
            topic = self.random.choice(p["topics"])
            number = self.issued.get(topic, 0)
            self.issued[topic] = number + 1
            payload = f"{number} " + "." * self.random.choice(p["padding"])
            if p["clear_every"] and self.random.randrange(p["clear_every"]) == 0:
                payload = ""
            self.last[topic] = payload != ""
            sent = self.paho.publish(topic, payload.encode(), p["qos"], p["retain"])
            if p["qos"] > 0:
                self.waiting[sent.mid] = (topic, number)

    def toggle_what_is_due(self):
        t = self.toggling
        if not t or self.is_paused or self.toggles or self.random.random() > t["per_second"] * LOOP_S:
            return
        chosen = self.random.choice(t["filters"])
        if self.held.get(chosen):
            self.tell("unsubscribing", chosen)
            _, mid = self.paho.unsubscribe(chosen)
        else:
            self.tell("subscribing", chosen)
            _, mid = self.paho.subscribe(chosen, t["qos"])
        self.held[chosen] = not self.held.get(chosen)
        self.toggles[mid] = chosen

    def on_connect(self, _client, _userdata, flags, reason, _properties):
        if reason.is_failure:
            self.tell("refused", str(reason))
            return
        self.is_connected = True
        self.tell("connected", flags.session_present)
        # As most applications do, whatever Session Present says.
        if self.filters and (self.clean or not flags.session_present):
            self.subscribe(self.filters)

    def on_log(self, _client, _userdata, _level, text):
        if "PUB" in text:
            self.tell("log", text)

    def on_message(self, _client, _userdata, message):
        label = message.payload.split(b" ", 1)[0].decode()
        self.tell("message", message.topic, label, message.qos, message.retain, message.dup)

    def on_publish(self, _client, _userdata, mid, _reason, _properties):
        # At QoS 0 it says no more than that it was written.
        if self.publishing["qos"] > 0:
            self.tell("acknowledged", *self.waiting.pop(mid))

    def on_subscribe(self, _client, _userdata, mid, reasons, _properties):
        if mid in self.toggles:
            self.tell("subscribed", [self.toggles.pop(mid)])
        else:
            self.tell("subscribed", self.subscribing.pop(mid, []))

    def on_unsubscribe(self, _client, _userdata, mid, _reasons, _properties):
        self.tell("unsubscribed", self.toggles.pop(mid))


for line in sys.stdin:
    command = json.loads(line)
    name = command["client"]
    if command["do"] == "start":
        clients[name] = Client(command)
        clients[name].start()
    else:
        # One at a time: the client looks several times a second.
        while clients[name].wants is not None and clients[name].is_alive():
            time.sleep(LOOP_S / 4)
        clients[name].wants = command
