"""Receipts, gathered by device: under load one MQTT message speaks for many samples.

With little to do they go at once. While the gateway is busy they wait for company until `EVERY_S` have passed since
the last round, or until a device has `ENOUGH`, so that one with many outcomes under way is not held up by it. Those
that wait when the process is killed are lost, and their devices send again.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from time import monotonic

from sluice.wire import metrics
from sluice.wire.errors import TemporaryError
from sluice.wire.state import Receipt

log = logging.getLogger(__name__)

EVERY_S = 0.1
ENOUGH = 16
MOST = 1000
"""Samples in one receipt: 20 digits each, they stay below the bound of what is state in its size."""


class Receipts:
    """What is in Kafka and its device does not know of yet; `publish` is called with a device and a receipt's JSON."""

    def __init__(self, publish: Callable[[str, bytes], object]) -> None:
        self._publish = publish
        self._waiting: dict[tuple[str, str], list[int]] = defaultdict(list)
        self._enough: list[tuple[str, str]] = []
        self._next_round = 0.0

    def add(self, device: str, epoch: str, seq: int) -> None:
        """A sample is in Kafka."""
        seqs = self._waiting[device, epoch]
        seqs.append(seq)
        if len(seqs) == ENOUGH:
            self._enough.append((device, epoch))

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def send(self, *, busy: bool) -> None:
        """Publish those whose time has come: all of them, unless the gateway is busy."""
        if not self._waiting:
            return
        now = monotonic()
        if not busy or now >= self._next_round:
            self._next_round = now + EVERY_S
            keys = list(self._waiting)
        else:
            keys = self._enough
        self._enough = []
        for key in keys:
            self._send(*key)

    def _send(self, device: str, epoch: str) -> None:
        seqs = self._waiting.pop((device, epoch))
        for i in range(0, len(seqs), MOST):
            receipt = Receipt(epoch=epoch, seqs=seqs[i : i + MOST])
            try:
                self._publish(device, receipt.model_dump_json().encode())
            except TemporaryError as error:
                # nothing depends on a single receipt: the device sends again, and the next one speaks for it
                log.warning("%d receipts of %s are left out: %s", len(receipt.seqs), device, error)
            else:
                metrics.GATEWAY_RECEIPTS.inc(len(receipt.seqs))
