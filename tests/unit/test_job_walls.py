"""A job as an attacker: what it tries, in its own process, to get at the service, at others, and out of its limits."""

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from cloud.job_process import MOST_PROCESSES
from tests.unit.test_cloud_jobs import KERNEL, LIMITS, Bench, gone

ROOT = Path(__file__).parents[2]
SECRET = "sluice-secret-5e1f"

ATTEMPT = """
import ctypes, errno, socket
libc = ctypes.CDLL(None, use_errno=True)
def attempt(what):
    try:
        got = what()
    except OSError as error:
        return "refused" if error.errno in (errno.EPERM, errno.EACCES) else errno.errorcode[error.errno]
    except ValueError:  # of a limit
        return "refused"
    return "allowed"
def call(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), "")
parent = os.getppid()
"""


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def tried(bench: Bench, attempts: dict[str, str], before: str = "") -> dict[str, str]:
    """What became of each attempt, an expression in the job's Python."""
    lines = [ATTEMPT.strip(), before]
    lines += ["said = {}"] + [f"said[{name!r}] = attempt(lambda: {code})" for name, code in attempts.items()]
    report = bench.run("\n".join([*lines, "say('done', result=said)"]))
    assert report.state == "done", (report.reason, (bench.job / "log.txt").read_text())
    log = (bench.job / "log.txt").read_text()
    if "no Landlock" in log or "no seccomp" in log:
        pytest.skip(f"NOT RUN: {log.splitlines()[0]}")
    return {name: str(value) for name, value in report.result.items()}


def all_refused(found: dict[str, str]) -> None:
    assert {name: said for name, said in found.items() if said != "refused"} == {}


def test_files_of_the_service_and_of_others(bench: Bench, tmp_path: Path) -> None:
    """Its data folder, settings and keys wherever they lie, another job's folder, homes; by links too."""
    other = bench.data / "jobs" / "two"
    other.mkdir()
    (other / "input.keras").write_text(SECRET)
    for name in ("sluice.toml", "client.key"):
        (tmp_path / name).write_text(SECRET)
    secret = str(bench.data / "secret")
    files = [secret, f"{bench.data}/jobs/two/input.keras", f"{tmp_path}/sluice.toml", f"{tmp_path}/client.key"]
    files += [str(ROOT / "pyproject.toml"), str(ROOT / "tests" / "conftest.py"), "/etc/shadow"]
    attempts = {f"read {file}": f"open({file!r}).read()" for file in files}
    attempts |= {
        f"list {at}": f"os.listdir({str(at)!r})" for at in (bench.data, tmp_path, "/root", "/home", "/etc", "/tmp")
    }
    attempts |= {f"write {at}": f"open({f'{at}/x'!r}, 'w')" for at in (tmp_path, bench.programs, "/tmp", "/dev/shm")}
    attempts["follow a link"] = f"(os.symlink({secret!r}, 'link'), open('link').read())"
    attempts["a link of its own"] = f"os.link({secret!r}, 'hard')"
    attempts["move it here"] = f"os.rename({secret!r}, 'moved')"
    handle = {"x86_64": 304, "aarch64": 265}[os.uname().machine]
    attempts["open it without a path"] = f"call({handle}, 0, 0, 0)"
    attempts["remove it"] = f"os.remove({secret!r})"
    found = tried(bench, attempts)
    # a link or a move to another folder is refused with this where Landlock lets neither side do it
    all_refused({name: "refused" if said == "EXDEV" else said for name, said in found.items()})
    assert (bench.data / "secret").read_text() == "secret"


def test_the_process_of_the_service(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its environment, memory, open files and folders, by `/proc` and by system calls."""
    monkeypatch.setenv("CLOUD_DATABASE", SECRET)
    names = ("environ", "mem", "maps", "auxv", "fd/0", "fdinfo/0")
    attempts = {name: f"open(f'/proc/{{parent}}/{name}', 'rb').read(1)" for name in names}
    attempts |= {f"where {name}": f"os.readlink(f'/proc/{{parent}}/{name}')" for name in ("cwd", "root", "exe")}
    attempts |= {f"open {n}": f"os.readlink(f'/proc/{{parent}}/fd/{n}')" for n in (0, 1, 2)}
    attempts["through its root"] = "open(f'/proc/{parent}/root/etc/hostname').read()"
    numbers = {"x86_64": (101, 310, 438, 312), "aarch64": (117, 270, 438, 272)}[os.uname().machine]
    ptrace, read_memory, get_descriptor, compare = numbers
    attempts["ptrace"] = f"call({ptrace}, 16, parent, 0, 0)"
    attempts["seize"] = f"call({ptrace}, 0x4206, parent, 0, 0)"
    attempts["memory"] = f"call({read_memory}, parent, 0, 0, 0, 0, 0)"
    attempts["its sockets"] = f"call({get_descriptor}, 0, 0, 0)"
    attempts["compare"] = f"call({compare}, parent, os.getpid(), 0, 0, 0)"
    if KERNEL >= (6, 12):
        attempts["signal"] = "os.kill(parent, 0)"
    all_refused(tried(bench, attempts))


@pytest.fixture
def listening() -> Iterator[int]:
    """A server on loopback, as Kafka and the database are; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_no_network(bench: Bench, listening: int) -> None:
    """Neither Kafka nor the database nor the service itself, whether by TCP or a socket in the file system."""
    kinds = {"UDP": "AF_INET, socket.SOCK_DGRAM", "unix": "AF_UNIX", "netlink": "AF_NETLINK, socket.SOCK_RAW, 0"}
    attempts = {name: f"socket.socket(socket.{kind})" for name, kind in kinds.items()}
    attempts["TCP"] = f"socket.create_connection(('127.0.0.1', {listening}), timeout=5)"
    attempts["a pair that could be turned elsewhere"] = "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)"
    attempts["io_uring"] = "call(425, 1, 0)"
    found = tried(bench, attempts | {"a pair of its own": "[end.close() for end in socket.socketpair()]"})
    assert found.pop("a pair of its own") == "allowed", "Python's own libraries use them"
    all_refused(found)


def test_what_holds_it_cannot_be_taken_off(bench: Bench) -> None:
    attempts = {
        "a session of its own": "os.setsid()",
        "a group of its own": "os.setpgid(0, 0)",
        "outliving the service": "call(PRCTL, 1, 0, 0, 0, 0)",
        "leaving what it started to others": "call(PRCTL, 36, 0, 0, 0, 0)",
        "a user namespace": "call(UNSHARE, 0x10000000)",
        "more files": "__import__('resource').setrlimit(__import__('resource').RLIMIT_FSIZE, (-1, -1))",
        "another user": "os.setuid(65534 if os.getuid() == 0 else 0)",
    }
    numbers = {"x86_64": (157, 272), "aarch64": (167, 97)}[os.uname().machine]
    found = tried(bench, attempts, "PRCTL, UNSHARE = {}, {}".format(*numbers))
    found = {name: "refused" if said == "EINVAL" else said for name, said in found.items()}
    all_refused(found)


def test_what_it_left_behind_twice_removed_is_ended_and_counted(bench: Bench) -> None:
    """A grandchild whose parent is gone is nobody's child but still of the job."""
    lost = """
        def lose(work):
            heard, told = os.pipe()
            if not os.fork():
                if not os.fork():
                    os.write(told, str(os.getpid()).encode())
                    work()
                os._exit(0)
            os.wait()
            return int(os.read(heard, 20))
    """
    report = bench.run(lost + "\n        say('done', result={'lost': lose(lambda: time.sleep(600))})")
    assert report.state == "done"
    gone(report.result["lost"])
    hungry = "\n        lose(lambda: (bytearray(b'1' * 400_000_000), time.sleep(600)))\n        time.sleep(60)"
    report = bench.run(lost + hungry)
    assert "MB of memory" in str(report.reason)


def test_it_cannot_fill_the_machine_with_processes(bench: Bench) -> None:
    body = f"""
    for _ in range({MOST_PROCESSES + 50}):
        if not os.fork():
            time.sleep(600)
    time.sleep(60)
    """
    report = bench.run(body, replace(LIMITS, memory=10**13, time_s=60))
    assert f"its limit is {MOST_PROCESSES}" in str(report.reason)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("os.kill(os.getpid(), 40)", "the job ended by signal 40"),
        ("print('x' + chr(0) + 'y'); sys.exit(1)", "exit code 1: x\ufffdy"),
        ("(folder / 'events.jsonl').write_text('[' * 100_000 + chr(10)); time.sleep(60)", "report is not JSON"),
        ("say('metrics', loss=float('nan')); time.sleep(60)", "report is not JSON"),
        ("say('metrics', name=chr(0)); time.sleep(60)", "has a zero character"),
        ("say('failed', reason=chr(0xd800)); sys.exit(2)", "report is not JSON"),
    ],
)
def test_what_no_database_takes_does_not_get_there(bench: Bench, body: str, reason: str) -> None:
    report = bench.run(body)
    assert report.state == "failed" and reason in str(report.reason)
    str(report.reason).encode()


def test_it_knows_which_version_it_is_of(bench: Bench) -> None:
    """As a bundle's provenance says."""
    report = bench.run("from importlib.metadata import version\nsay('done', result={'sluice': version('sluice')})")
    assert report.result == {"sluice": version("sluice")}


def test_several_jobs_do_not_see_one_another(bench: Bench) -> None:
    """Two at the same time: each other's folder, memory and standard output."""
    from cloud.job_process import run_job

    other = bench.data / "jobs" / "two"
    other.mkdir()
    (other / "checkpoint.npz").write_text(SECRET)
    program = bench.program("say('progress', what=str(os.getpid()), done=0, total=1); time.sleep(600)")
    begun, stop, pids = threading.Event(), threading.Event(), list[str]()

    def hear(event: dict[str, Any]) -> None:
        pids.append(event["what"])
        begun.set()

    thread = threading.Thread(target=run_job, args=(program, other, bench.data, LIMITS, stop, hear))
    thread.start()
    try:
        assert begun.wait(20)
        one = f"/proc/{pids[0]}"
        attempts = {name: f"open('{one}/{name}', 'rb').read(1)" for name in ("environ", "mem", "maps", "fd/1")}
        attempts |= {"folder": f"os.listdir({str(other)!r})", "through it": f"os.listdir('{one}/cwd')"}
        attempts["checkpoint"] = f"open({str(other / 'checkpoint.npz')!r}).read()"
        if KERNEL >= (6, 12):
            attempts["signal"] = f"os.kill({pids[0]}, 0)"
        all_refused(tried(bench, attempts))
    finally:
        stop.set()
        thread.join(20)
