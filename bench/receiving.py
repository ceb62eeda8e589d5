"""What the gateway is compared with: a paho client that receives and acknowledges, and does nothing else.

Every `STEP` messages it prints how many it has, the monotonic clock, and its CPU time, both in seconds.

    python -m bench.receiving HOST:PORT CLIENT FILTER
"""

from __future__ import annotations

import argparse
import time

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from bench.bare import send_at_once

STEP = 50
SESSION_S = 3600


def main() -> None:
    """Receive until it is ended."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("address")
    parser.add_argument("client")
    parser.add_argument("filter")
    args = parser.parse_args()
    host, _, port = args.address.rpartition(":")
    client = paho.Client(CallbackAPIVersion.VERSION2, args.client, protocol=paho.MQTTv5)
    came = 0

    def connected(c: paho.Client, *_: object) -> None:
        c.subscribe(args.filter, 1)

    def subscribed(*_: object) -> None:
        print(0, 0, 0, flush=True)

    def on_message(_client: paho.Client, _userdata: object, _message: paho.MQTTMessage) -> None:
        nonlocal came
        came += 1
        if came % STEP == 0:
            print(came, time.monotonic(), time.process_time(), flush=True)

    client.on_connect = connected
    client.on_subscribe = subscribed
    client.on_message = on_message
    client.on_socket_open = send_at_once
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types for it
    properties.SessionExpiryInterval = SESSION_S
    client.connect(host, int(port), clean_start=False, properties=properties)
    client.loop_forever()


if __name__ == "__main__":
    main()
