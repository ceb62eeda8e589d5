"""What other processes of the same user may see of this one."""

from __future__ import annotations

import ctypes
import sys

PR_SET_DUMPABLE = 4


def keep_to_itself() -> None:
    """Let no other process of this user read this one's environment, memory or open files, by Linux' own check.

    For daemons beside which foreign code runs. A debugger needs root then, and a crash leaves no core file.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
