"""paho-mqtt, driven line by line: a JSON command on stdin, JSON events on stdout. See clients.rs for both."""

import json
import sys
import threading

import paho.mqtt.client as paho

clients = {}
writing = threading.Lock()


def emit(client, event, **fields):
    line = json.dumps({"client": client, "event": event, **fields})
    with writing:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def connect(name, command):
    client = paho.Client(
        paho.CallbackAPIVersion.VERSION2,
        client_id=command["id"],
        clean_session=command["clean"],
        protocol=paho.MQTTv31 if command["level"] == 3 else paho.MQTTv311,
        reconnect_on_failure=False,
        transport="websockets" if command["scheme"] in ("ws", "wss") else "tcp",
    )
    if command["ca"]:
        client.tls_set(ca_certs=command["ca"])
    if command["user"]:
        client.username_pw_set(*command["user"])
    client.max_inflight_messages_set(command["inflight"])
    clip = command["clip"]

    def on_connect(_client, _userdata, flags, reason, _properties):
        if reason.is_failure:
            emit(name, "refused", reason=str(reason))
        else:
            emit(name, "connected", session_present=flags.session_present)

    def on_message(_client, _userdata, message):
        emit(
            name,
            "message",
            topic=message.topic,
            payload=message.payload[:clip].hex(),
            size=len(message.payload),
            qos=message.qos,
            retain=message.retain,
            dup=message.dup,
        )

    client.on_connect = on_connect
    client.on_message = on_message
    client.on_disconnect = lambda *_: emit(name, "closed")
    client.on_subscribe = lambda _c, _u, _mid, reasons, _p: emit(name, "subscribed", granted=[r.value for r in reasons])
    client.on_unsubscribe = lambda *_: emit(name, "unsubscribed")
    will = command.get("will")
    if will:
        client.will_set(will["topic"], bytes.fromhex(will["payload"]), will["qos"], will["retain"])
    clients[name] = client
    client.connect(command["host"], command["port"], command["keep_alive"])
    client.loop_start()


def send(name, command, payloads, event):
    """In a thread of its own: several clients of one agent publish at the same time."""

    def work():
        sent = [clients[name].publish(command["topic"], p, command["qos"], command["retain"]) for p in payloads]
        for message in sent:
            message.wait_for_publish(60)
        if all(message.is_published() for message in sent):
            emit(name, event)
        else:
            emit(name, "error", text="not everything was acknowledged within 60 s")

    threading.Thread(target=work, daemon=True).start()


def burst(command):
    padding = b"." * command["padding"]
    return (f"{command['prefix']}{n} ".encode() + padding for n in range(command["count"]))


for line in sys.stdin:
    command = json.loads(line)
    name = command["client"]
    try:
        match command["do"]:
            case "connect":
                connect(name, command)
            case "subscribe":
                clients[name].subscribe([(f, q) for f, q in command["filters"]])
            case "unsubscribe":
                clients[name].unsubscribe(command["filters"])
            case "publish":
                send(name, command, [bytes.fromhex(command["payload"])], "published")
            case "burst":
                send(name, command, burst(command), "burst")
            case "payloads":
                send(name, command, [bytes.fromhex(p) for p in command["payloads"]], "burst")
            case "disconnect":
                clients[name].disconnect()
    except Exception as error:  # the test shall see it, whatever it is
        emit(name, "error", text=repr(error))
