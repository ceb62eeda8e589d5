"""Asking: the control plane is asked for answers that did not come.

An answer from above has no receipt on its way down, and a broker that is killed may forget it. So the outbox knows
which samples are late (`Late`), and a thread (`Asker`) asks the control plane, which keeps the results, off the main
loop. What it is told comes back through the mailbox and is taken like an answer over MQTT. Control plane or link may be
away for days: one question at a time, with a pause that grows.
"""

from __future__ import annotations

import heapq
import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from edge_agent.control_plane import ControlPlane
from edge_agent.settings import EdgeSettings
from sluice.daemon.life import Backoff
from sluice.wire.answers import ASK_MOST, Answers, Question, unpack
from sluice.wire.errors import PermanentError, TemporaryError, UnknownSchemaError
from sluice.wire.messages import Prediction

log = logging.getLogger(__name__)

PAUSE_MOST_S = 300.0
"""Longest pause while the control plane is away."""
AGAIN_MOST_S = 3600.0
"""Longest time until a sample of which nothing was known is asked for again."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of a question: the final predictions that are known of `seqs`, all of this device and epoch."""

    seqs: Sequence[int]
    answers: Sequence[Prediction]


class Late:
    """Samples whose answer did not come in time, each with the time to ask for it, twice as far off each time."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._due: list[tuple[float, int]] = []
        self._waits: dict[int, float] = {}

    def add(self, seqs: Iterable[int], now: float) -> None:
        """They are to be asked for, or asked for again."""
        for seq in seqs:
            wait_s = min(self._waits.get(seq, self._first_s / 2) * 2, AGAIN_MOST_S)
            self._waits[seq] = wait_s
            heapq.heappush(self._due, (now + wait_s, seq))

    def pop(self, now: float) -> list[int]:
        """Those whose time has come, `ASK_MOST` at most; each has to be given back by `add`, or to `forget`."""
        found: list[int] = []
        while self._due and self._due[0][0] <= now and len(found) < ASK_MOST:
            found.append(heapq.heappop(self._due)[1])
        return found

    def forget(self, seq: int) -> None:
        """Its answer is here, or it is not waited for any more."""
        self._waits.pop(seq, None)


class Asker:
    """A thread with one question at a time, whose answers it hands to `report`."""

    def __init__(self, settings: EdgeSettings, epoch: str, report: Callable[[Asked], None]) -> None:
        self._path = f"/v1/devices/{settings.device_id}/answers"
        self._sample = (settings.device_id, epoch)
        self._report = report
        self._control = ControlPlane(settings)
        self._seqs: list[int] = []
        self._asked = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="asking", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether it takes another question."""
        return not self._seqs

    def ask(self, seqs: list[int]) -> None:
        """Ask for these samples, at most `ASK_MOST` and not while it is not `idle`; no samples, no question."""
        if seqs:
            self._seqs = seqs
            self._asked.set()

    def close(self) -> None:
        """End the thread; a question under way is left."""
        self._closing.set()
        self._asked.set()

    def _serve(self) -> None:
        while self._asked.wait() and not self._closing.is_set():
            self._asked.clear()
            answers = self._until_answered(self._seqs)
            if not self._closing.is_set():
                seqs, self._seqs = self._seqs, []
                self._report(Asked(seqs, answers))
        self._control.close()

    def _until_answered(self, seqs: list[int]) -> list[Prediction]:
        """A refusal is tried again as well: tokens are mended and control planes upgraded."""
        backoff, told = Backoff(1.0, PAUSE_MOST_S), False
        while not self._closing.is_set():
            try:
                return self._answers(seqs)
            except (PermanentError, TemporaryError) as error:
                if not told and not self._closing.is_set():
                    log.warning("%d late answers cannot be asked for, trying again: %s", len(seqs), error)
                    told = True
                self._closing.wait(backoff.wait_s())
        return []

    def _answers(self, seqs: list[int]) -> list[Prediction]:
        question = Question(epoch=self._sample[1], seqs=seqs)
        try:
            told = Answers.model_validate(self._control.door.call("POST", self._path, question.model_dump()))
        except ValueError as error:  # neither JSON nor what we know
            raise PermanentError(f"the control plane's answer cannot be read: {str(error)[:200]}") from error
        answers = []
        for text in told.answers:
            try:
                prediction = unpack(text)
            except (PermanentError, UnknownSchemaError) as error:
                log.warning("a late answer cannot be read and is asked for again: %s", error)
                continue
            if (prediction.device_id, prediction.epoch) == self._sample:
                answers.append(prediction)
        return answers
