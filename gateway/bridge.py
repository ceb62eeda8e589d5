"""The gateway: two loops that know nothing of each other, up (`up.py`) and down (`down.py`).

Each has an MQTT client and Kafka clients of its own, so that a way up that has to wait for Kafka does not keep
answers from going down. The gateway holds nothing that it could lose: what it has not confirmed, the broker or Kafka
still has.
"""

from __future__ import annotations

import logging
import threading

from gateway.down import Down
from gateway.settings import GatewaySettings
from gateway.up import Up
from sluice.daemon.life import READY

log = logging.getLogger(__name__)


def run(settings: GatewaySettings, stop: threading.Event) -> None:
    """Carry messages both ways until `stop` is set."""
    up, down = Up(settings), Down(settings)
    downward = threading.Thread(target=down.run, args=(stop,), name="down")
    downward.start()
    log.info(READY)
    try:
        up.run(stop)
    except Exception:
        log.critical("the way up has ended", exc_info=True)  # said now: the other way may be long in ending
        raise
    finally:
        stop.set()  # a defect on the way up ends the whole process: half a gateway would look alive
        downward.join()
