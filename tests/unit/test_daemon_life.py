"""A daemon starts, says that it is ready, stops when it is told, and crashes loudly. Each here is a real process."""

import json
import signal
import socket
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sluice.daemon.life import Backoff
from tests.unit.wire_support import patient

FRAME = """
import logging, sys, threading
from sluice.daemon.life import READY, run
from sluice.daemon.settings import RoomSettings
from sluice.wire.errors import PermanentError, TemporaryError
log = logging.getLogger("barn")

def main(stop):
    log.info(READY, extra={"tier": "fog", "seq": 7})
{body}

sys.exit(run("barn", RoomSettings(metrics_port={port}), main, stop_within_s={within_s}))
"""


def start(body: str, port: int = 0, within_s: float = 30) -> "subprocess.Popen[str]":
    lines = "\n".join("    " + line for line in body.splitlines())
    source = FRAME.replace("{body}", lines).replace("{port}", str(port)).replace("{within_s}", str(within_s))
    return subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True)


def end(process: "subprocess.Popen[str]") -> tuple[int, list[dict[str, Any]]]:
    """Exit code and log lines; every line on standard error is JSON."""
    _, log = process.communicate(timeout=60)
    return process.returncode, [json.loads(line) for line in log.splitlines()]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_in_an_orderly_way(number: signal.Signals) -> None:
    process = start("stop.wait()")
    assert process.stderr is not None
    ready = json.loads(process.stderr.readline())
    assert (ready["message"], ready["room"], ready["level"]) == ("ready", "barn", "INFO")
    assert (ready["tier"], ready["seq"]) == ("fog", 7), "what the caller said of the record"
    process.send_signal(number)
    code, log = end(process)
    assert code == 0 and [line["message"] for line in log] == ["stopped"]


def test_a_signal_is_heard_by_whichever_thread_gets_it() -> None:
    """The kernel gives it to any; one that the main thread would not take goes to another."""
    body = (
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])\n"
        "signal.pthread_kill(threading.get_ident(), signal.SIGTERM)\n"
        "stop.wait()"
    )
    code, log = end(start("import signal\n" + body))
    assert code == 0 and log[-1]["message"] == "stopped"


def test_what_does_not_come_to_an_end_is_ended() -> None:
    process = start("threading.Event().wait()", within_s=0.2)
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    code, log = end(process)
    assert code == 0
    (line,) = log
    assert line["level"] == "WARNING" and line["message"].startswith("not through 0.2 s after it was told to stop")


def test_what_ends_by_itself_and_does_not_come_to_an_end_is_a_failure() -> None:
    code, log = end(start("stop.set()\nthreading.Event().wait()", within_s=0.2))
    assert code == 1 and log[-1]["message"].startswith("not through 0.2 s")


def test_a_defect_ends_it_with_a_traceback() -> None:
    code, log = end(start("{}['nothing']"))
    assert code == 1
    assert "defect" in log[-1]["message"] and log[-1]["level"] == "CRITICAL"
    assert "KeyError: 'nothing'" in log[-1]["traceback"] and "in main" in log[-1]["traceback"]


def test_a_defect_in_any_thread_ends_it_with_a_traceback() -> None:
    body = "def work(): {}['nothing']\nthreading.Thread(target=work, name='sidekick').start()\nstop.wait()"
    code, log = end(start(body))
    assert code == 1
    assert "defect in thread sidekick" in log[-1]["message"]
    assert "KeyError: 'nothing'" in log[-1]["traceback"] and "in work" in log[-1]["traceback"]


def test_what_can_never_succeed_ends_it_in_one_line() -> None:
    code, log = end(start("raise PermanentError('no such model')"))
    assert code == 1
    assert log[-1]["message"] == "cannot go on: no such model" and "traceback" not in log[-1]


def test_a_metrics_port_that_is_taken_ends_it_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, log = end(start("stop.wait()", port))
    assert code == 1
    assert f"cannot go on: metrics_port {port}: " in log[-1]["message"] and "traceback" not in log[-1]


@patient
@given(st.floats(0.001, 10), st.floats(1, 1000))
def test_backoff_doubles_up_to_its_most_with_jitter_below(first_s: float, factor: float) -> None:
    most_s = first_s * factor
    backoff = Backoff(first_s, most_s)
    for _ in range(2):
        wanted = first_s
        for _ in range(15):
            assert wanted / 2 <= backoff.wait_s() <= wanted
            wanted = min(wanted * 2, most_s)
        backoff.reset()
