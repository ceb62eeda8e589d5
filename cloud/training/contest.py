"""Whether what was learnt is better than what runs, on records that neither learnt from; one may look at any time.

Both answer each judging record when it comes, so what is compared are the models of that moment. As in McNemar's test
only records count that one gets right and the other wrong. Were the learner no better, each of these would be won by it
with a probability of at most a half, whatever came before: so who bets on the learner at even odds cannot expect to
win, and his capital *ever* reaches 1/δ with a probability of at most δ (`cloud.watch.betting`, where the same is bet on
audits; ε is a half here).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from cloud.watch.betting import log_more

MOST = 20_000
"""Records on which only one was right; then it begins anew, as the error may be quite another by then."""


class Contest:
    """The learner against what runs."""

    def __init__(self, won: Any = (), judged: int = 0) -> None:
        self.won = [bool(one) for one in won]
        """Of each record that only one got right, whether that was the learner."""
        self.judged = judged
        self._most = self._log_most()

    def take(self, learner: Any, running: Any) -> None:
        """Of some judging records in order, whether each got them right: (n,) bool."""
        self.judged += len(learner)
        apart = np.asarray(learner) != np.asarray(running)
        if not apart.any():
            return
        if len(self.won) >= MOST:
            self.won = []
        self.won += np.asarray(learner)[apart].tolist()
        self._most = self._log_most()

    def _log_most(self) -> float:
        if not self.won:
            return 0.0
        none = np.zeros(len(self.won))
        return max(0.0, float(log_more(np.array(self.won), none, 0.0, 0.5).max()))

    @property
    def wealth(self) -> float:
        """The largest capital that betting on the learner came to, from 1; at most 10^30."""
        return math.exp(min(self._most, 30 * math.log(10)))

    def is_won(self, confidence: float) -> bool:
        """Whether the learner is better, said wrongly with a probability of at most 1 - `confidence`."""
        return self._most >= -math.log(1 - confidence)
