"""A fault in another process: `PYTHONPATH` with `place` in front makes any Python program end at a point of its own.

What a program writes is counted from the moment on that a path with `FAULT_FROM` in it turns up: files opened to be
written, renames, fsyncs, and the statements that begin and end a transaction of SQLite. At number `FAULT_AT` the
process is killed by the kernel; without `FAULT_AT` each point is only written down in `FAULT_LOG`. With `FAULT_IN`
instead, the process is killed when a function of that name opens such a path.
"""

from pathlib import Path

CODE = """
import os, signal, sqlite3, sys

_from, _at, _log, _in = (os.environ.get("FAULT_" + name) for name in ("FROM", "AT", "LOG", "IN"))
_count = 0
_armed = False
_WRITES = os.O_WRONLY | os.O_RDWR

def _point(what):
    global _count
    if not _armed or _in:
        return
    _count += 1
    if _log:
        log = os.open(_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(log, f"{_count} {what}\\n".encode())
        os.close(log)
    elif _at and _count == int(_at):
        os.kill(os.getpid(), signal.SIGKILL)

def _statement(text):
    if text.startswith(("COMMIT", "BEGIN")):
        _point("sqlite " + text)

def _hook(event, args):
    global _armed
    if event in ("open", "os.mkdir", "os.rename") and _from and _from in str(args[0]):
        _armed = True
        if _in and event == "open":
            frame = sys._getframe()
            while frame is not None:
                if frame.f_code.co_name == _in:
                    os.kill(os.getpid(), signal.SIGKILL)
                frame = frame.f_back
    if event == "open" and isinstance(args[2], int) and args[2] & _WRITES and str(args[0]) != _log:
        _point(f"open {args[0]}")
    elif event == "os.rename":
        _point(f"rename {args[1]}")

if _from:
    _fsync = os.fsync

    def fsync(file):
        _point("fsync")
        _fsync(file)

    os.fsync = fsync
    _connect = sqlite3.connect

    def connect(*args, **options):
        connection = _connect(*args, **options)
        connection.set_trace_callback(_statement)
        return connection

    sqlite3.connect = connect
    sys.addaudithook(_hook)
"""


def place(folder: Path) -> str:
    """Put the fault into `folder`; returns what `PYTHONPATH` is to be."""
    (folder / "sitecustomize.py").write_text(CODE)
    return str(folder)
