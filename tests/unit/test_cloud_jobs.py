"""Jobs: foreign code runs without the service's secrets, within limits, and never longer than the service."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import Connection, Engine, insert, select

from cloud.artifacts import Store, open_output
from cloud.database import migrate, open_database, reading, writing
from cloud.job_process import Event, Limits, Program, Report, run_job
from cloud.jobs import Again, Job, Runner
from cloud.tables import jobs, tokens
from sluice.wire.errors import PermanentError, TemporaryError

LIMITS = Limits(time_s=20, memory=200_000_000, output=20_000_000, log=1000)
WAIT_S = 20.0
KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])

PRELUDE = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
def say(event, **values):
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": event, **values}) + "\\n")
"""


class Bench:
    """A data folder with a job folder in it, and programs beside it."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.programs = folder / "programs"
        self.job = self.data / "jobs" / "one"
        self.job.mkdir(parents=True)
        self.programs.mkdir()
        (self.data / "secret").write_text("secret")

    def program(self, body: str) -> Program:
        (self.programs / "tiny.py").write_text(PRELUDE + textwrap.dedent(body))
        return Program("tiny", self.programs)

    def run(
        self,
        body: str,
        limits: Limits = LIMITS,
        on_event: Callable[[Event], None] = lambda _event: None,
        cancelled: threading.Event | None = None,
    ) -> Report:
        stop = cancelled or threading.Event()
        return run_job(self.program(body), self.job, self.data, limits, stop, on_event)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_job_reports_as_it_goes_and_at_the_end(bench: Bench) -> None:
    seen: list[Event] = []
    report = bench.run(
        """
        say("progress", what="reading", done=1, total=2)
        say("metrics", epoch=1, epochs=2, metrics={"final": {"accuracy": 0.5}})
        print("hello")
        say("done", result={"n": 1})
        """,
        on_event=seen.append,
    )
    assert report == Report("done", result={"n": 1})
    assert [event["event"] for event in seen] == ["progress", "metrics"]
    assert (bench.job / "log.txt").read_text() == "hello\n"


def test_a_job_that_fails_says_why(bench: Bench) -> None:
    assert bench.run("say('failed', reason='no layers'); sys.exit(2)") == Report("failed", "no layers")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("raise ValueError('boom')", "exit code 1: ValueError: boom"),
        ("os.kill(os.getpid(), 11)", "signal SIGSEGV"),
        ("say('done', result={}); sys.exit(3)", "exit code 3"),
        ("pass", "exit code 0"),
        ("(folder / 'events.jsonl').write_text('nonsense\\n')", "not JSON"),
        ("(folder / 'events.jsonl').symlink_to('/etc/passwd')", "no readable events.jsonl"),
        ("os.mkfifo(folder / 'events.jsonl')", "events.jsonl is not a file"),
    ],
)
def test_a_job_that_does_not_keep_its_word_has_failed(bench: Bench, body: str, reason: str) -> None:
    report = bench.run(body)
    assert report.state == "failed"
    assert reason in str(report.reason)


def test_a_job_has_nothing_of_the_service(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_DATABASE", "postgresql://secret")
    report = bench.run(
        f"""
        def attempt(what):
            try:
                what()
            except PermissionError:
                return "refused"
            return "allowed"
        parent = os.getppid()
        say("done", result={{
            "environment": sorted(os.environ),
            "home": os.environ["HOME"],
            "folder": os.getcwd(),
            "secret": attempt(lambda: open({str(bench.data / "secret")!r}).read()),
            "others": attempt(lambda: os.listdir({str(bench.data)!r})),
            "parent": attempt(lambda: open(f"/proc/{{parent}}/environ").read()),
            "elsewhere": attempt(lambda: open({str(bench.programs / "x")!r}, "w")),
            "own": attempt(lambda: open("x", "w")),
            "kill": attempt(lambda: os.kill(parent, 0)),
        }})
        """
    )
    assert not [name for name in report.result["environment"] if name.startswith(("CLOUD", "SLUICE"))]
    assert set(report.result.pop("environment")) <= {
        "PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH", "PYTHONUNBUFFERED", "LC_CTYPE",
    }  # fmt: skip
    assert report.result.pop("home") == report.result.pop("folder") == str(bench.job)
    if "no Landlock" in (bench.job / "log.txt").read_text():
        pytest.skip("NOT RUN: this kernel has no Landlock, so jobs are not shut in")
    kill = report.result.pop("kill")
    if KERNEL >= (6, 12):
        assert kill == "refused"
    assert report.result == {
        "secret": "refused", "others": "refused", "parent": "refused", "elsewhere": "refused", "own": "allowed",
    }  # fmt: skip


def test_a_job_sees_nothing_of_the_process_that_reads_kafka_for_it(bench: Bench) -> None:
    """It is of the same user and started by the same process, and it knows how to reach Kafka."""
    program = bench.program(
        """
        def feed():
            for entry in pathlib.Path("/proc").glob("[0-9]*"):
                try:
                    if b"sluice.streams.feed" in (entry / "cmdline").read_bytes():
                        if f"PPid:\\t{os.getppid()}\\n" in (entry / "status").read_text():
                            return entry
                except OSError:
                    continue
        def attempt(what):
            try:
                what()
            except PermissionError:
                return "refused"
            return "allowed"
        while feed() is None:
            time.sleep(0.05)
        found = feed()
        say("done", result={
            "arguments": (found / "cmdline").read_text().split("\\0")[1:-2],
            "environ": attempt(lambda: open(found / "environ").read()),
            "memory": attempt(lambda: open(found / "mem", "rb")),
            "input": attempt(lambda: os.open(found / "fd" / "0", os.O_RDONLY)),
            "kill": attempt(lambda: os.kill(int(found.name), 0)),
        })
        """
    )
    stream = {"stream_id": "s", "slices": ["t:0:0:1"], "format": "raw", "config": {}, "count": 1}
    stream |= {"validation_rate": 0, "deployment": None}
    wish = json.dumps({"kafka": {"bootstrap": "127.0.0.1:1", "options": {"sasl.password": "secret"}}, "stream": stream})
    report = run_job(program, bench.job, bench.data, LIMITS, threading.Event(), lambda _event: None, wish)
    if "no Landlock" in (bench.job / "log.txt").read_text():
        pytest.skip("NOT RUN: this kernel has no Landlock, so jobs are not shut in")
    assert report.state == "done", report.reason
    kill = report.result.pop("kill")
    if KERNEL >= (6, 12):
        assert kill == "refused"
    assert report.result == {
        "arguments": ["-P", "-m", "sluice.streams.feed"], "environ": "refused", "memory": "refused", "input": "refused",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "limits", "reason"),
    [
        ("x = bytearray(b'1' * 400_000_000); time.sleep(60)", LIMITS, "MB of memory"),
        ("time.sleep(60)", replace(LIMITS, time_s=0.5), "longer than 0.5 s"),
        ("[open(str(i), 'wb').write(bytes(9_000_000)) for i in range(9)]; time.sleep(60)", LIMITS, "wrote"),
        ("open('x', 'wb').write(bytes(90_000_000))", LIMITS, "File too large|wrote"),
        (
            "kept = [open(str(i), 'wb') for i in range(9)]\n"
            "[(os.remove(file.name), file.write(b'1' * 9_000_000), file.flush()) for file in kept]\ntime.sleep(60)",
            LIMITS,
            "wrote",
        ),
        ("sys.stdout.close(); os.close(1); os.close(2); time.sleep(60)", replace(LIMITS, time_s=0.5), "longer"),
    ],
)
def test_limits_end_a_job(bench: Bench, body: str, limits: Limits, reason: str) -> None:
    begun = time.monotonic()
    report = bench.run(body, limits)
    assert report.state == "failed"
    assert re.search(reason, str(report.reason))
    assert time.monotonic() - begun < 15


def test_the_log_is_bounded_and_its_end_is_the_reason(bench: Bench) -> None:
    report = bench.run("[print('x' * 99) for _ in range(10_000)]; raise SystemExit('the end')")
    assert (bench.job / "log.txt").stat().st_size == LIMITS.log
    assert str(report.reason).endswith("the end")


def test_nothing_of_a_job_is_left(bench: Bench) -> None:
    report = bench.run(
        """
        import subprocess
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        say("done", result={"child": child.pid})
        """
    )
    assert report.state == "done"
    gone(report.result["child"])


def gone(pid: int) -> None:
    """Wait until the process is dead (whether its parent has noticed or not)."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    deadline = time.monotonic() + WAIT_S
    while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"{pid} still runs"
        time.sleep(0.02)


def test_cancelling_ends_a_job(bench: Bench) -> None:
    cancelled = threading.Event()
    report = bench.run(
        "say('progress', what='x', done=0, total=1); time.sleep(60)",
        on_event=lambda _event: cancelled.set(),
        cancelled=cancelled,
    )
    assert report.state == "cancelled"


SERVICE = """
import sys, threading
from pathlib import Path
from cloud.job_process import Limits, Program, run_job
data, programs = map(Path, sys.argv[1:])
run_job(Program("tiny", programs), data / "jobs" / "one", data, Limits(60, 10**9, 10**9, 10**6), threading.Event(),
        lambda event: print(event["what"], flush=True))
"""


def test_a_killed_service_leaves_no_job(bench: Bench) -> None:
    bench.program("say('progress', what=str(os.getpid()), done=0, total=1); time.sleep(600)")
    service = subprocess.Popen(
        [sys.executable, "-c", SERVICE, str(bench.data), str(bench.programs)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert service.stdout is not None
    job = int(service.stdout.readline())
    assert psutil.pid_exists(job)
    service.send_signal(signal.SIGKILL)
    service.wait()
    service.stdout.close()
    gone(job)


def test_outputs_that_lead_elsewhere_are_refused(bench: Bench) -> None:
    (bench.job / "model.keras").symlink_to(bench.data / "secret")
    (bench.job / "bundle").symlink_to(bench.data)
    (bench.job / "folder").mkdir()
    for name in ("model.keras", "bundle/secret", "folder", "missing"):
        with pytest.raises(PermanentError):
            open_output(bench.job, name)


def test_a_store_keeps_what_is_whole(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    (tmp_path / "x").write_bytes(b"content")
    with (tmp_path / "x").open("rb") as file:
        stored = store.add(file, 100)
    assert store.path(stored.sha256).read_bytes() == b"content"
    for limit, wanted in ((3, None), (100, "0" * 64)):
        with (tmp_path / "x").open("rb") as file, pytest.raises(PermanentError):
            store.add(file, limit, wanted)
    assert [path.name for path in store.folder.iterdir()] == [stored.sha256]


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    engine = open_database(f"sqlite:///{tmp_path / 'sluice.db'}")
    migrate(engine)
    return engine


def runner(bench: Bench, engine: Engine, body: str, **changes: Any) -> Runner:
    programs = dict.fromkeys(("check", "training", "online"), bench.program(body))
    return Runner(engine, bench.data, LIMITS, 20.0, programs=programs, **changes)


def row_of(engine: Engine, job_id: str) -> dict[str, Any]:
    with reading(engine) as connection:
        return dict(connection.execute(select(jobs).where(jobs.c.id == job_id)).mappings().one())


def ended(engine: Engine, job_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_S
    while (row := row_of(engine, job_id))["state"] in ("queued", "running"):
        assert time.monotonic() < deadline, row
        time.sleep(0.02)
    return row


def nothing(_connection: Connection, _job_id: str) -> None:
    """A job that has no row but its own."""


def begin(jobs_of: Runner, spec: dict[str, Any] | None = None, record: Any = nothing) -> str:
    (job_id,) = jobs_of.begin("training", [Job(spec or {}, {}, record)])
    return job_id


def test_a_finished_job_and_its_records_are_one_transaction(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "open('out', 'w').write('x'); say('done', result={'n': 1})")

    def keep(job_id: str, folder: Path, result: dict[str, Any]) -> Callable[[Connection], None]:
        with open_output(folder, "out") as file:
            assert file.read() == b"x"
        row = {"hash": job_id, "role": "admin", "name": str(result["n"]), "created_at": 1}

        def write(connection: Connection) -> None:
            connection.execute(insert(tokens).values(row))

        return write

    jobs_of.start({"training": keep})
    job_id = begin(jobs_of)
    row = ended(engine, job_id)
    assert (row["state"], row["result"]) == ("done", {"n": 1})
    with reading(engine) as connection:
        assert connection.execute(select(tokens.c.hash)).scalars().all() == [job_id]
    jobs_of.stop()
    jobs_of.join(WAIT_S)
    assert sorted(path.name for path in (jobs_of.folder / job_id).iterdir()) == ["events.jsonl", "job.json", "log.txt"]


def test_a_job_with_bad_output_has_failed(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "say('done', result={})")

    def keep(_job_id: str, folder: Path, _result: dict[str, Any]) -> Callable[[Connection], None]:
        open_output(folder, "model.keras")
        raise AssertionError

    jobs_of.start({"training": keep})
    row = ended(engine, begin(jobs_of))
    assert row["state"] == "failed"
    assert "no readable model.keras" in row["reason"]
    jobs_of.stop()
    jobs_of.join(WAIT_S)


@pytest.mark.parametrize("when", ["at the end", "while it works"])
def test_a_job_that_makes_a_folder_without_end_takes_no_place_from_others(
    bench: Bench, engine: Engine, when: str
) -> None:
    body = """
        job = json.loads((folder / "job.json").read_text())
        if job.get("deep"):
            for _ in range(1500):
                os.mkdir("a")
                os.chdir("a")
            time.sleep(60 * (job["deep"] == "while it works"))
        say("done", result={})
    """
    jobs_of = runner(bench, engine, body)
    jobs_of.start({})
    try:
        row = ended(engine, begin(jobs_of, {"deep": when}))
        assert row["state"] == "done" or row["reason"].startswith("the job could not run")
        with contextlib.suppress(PermanentError):
            jobs_of.check({"deep": when}, {})
        assert ended(engine, begin(jobs_of))["state"] == "done"
        assert jobs_of.check({}, {}) == {}
        jobs_of.stop()
        jobs_of.join(WAIT_S)
    finally:
        subprocess.run(["rm", "-rf", str(jobs_of.folder)], check=True)


def test_metrics_and_progress_stand_in_the_row(bench: Bench, engine: Engine) -> None:
    body = "[say('metrics', epoch=i, epochs=3, metrics={}) for i in (1, 2, 3)]; say('done', result={})"
    jobs_of = runner(bench, engine, "say('progress', what='reading', done=1, total=1);" + body)
    jobs_of.start({})
    row = ended(engine, begin(jobs_of, spec={"x": 1}))
    assert [entry["epoch"] for entry in row["metrics"]] == [1, 2, 3]
    assert row["progress"] == {"what": "reading", "done": 1, "total": 1}
    assert json.loads((jobs_of.folder / row["id"] / "job.json").read_text()) == {"kind": "training", "x": 1}
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_what_was_said_last_stands_in_the_row_though_nothing_follows(bench: Bench, engine: Engine) -> None:
    body = "[say('progress', what='reading', done=i, total=9) for i in (1, 2)]; say('metrics', epoch=1); time.sleep(60)"
    jobs_of = runner(bench, engine, body)
    jobs_of.start({})
    job_id = begin(jobs_of)
    deadline = time.monotonic() + WAIT_S
    last = {"what": "reading", "done": 2, "total": 9}
    while (row := row_of(engine, job_id))["progress"] != last or not row["metrics"]:
        assert time.monotonic() < deadline and row["state"] != "failed", row
        time.sleep(0.02)
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_one_at_a_time_and_cancel_while_waiting(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "time.sleep(600)", waiting=1)
    jobs_of.start({})
    first = begin(jobs_of)
    deadline = time.monotonic() + WAIT_S
    while row_of(engine, first)["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    second = begin(jobs_of)
    with pytest.raises(TemporaryError, match="too many"):
        begin(jobs_of)
    assert row_of(engine, second)["state"] == "queued"
    jobs_of.cancel(second)
    assert row_of(engine, second)["state"] == "cancelled"
    jobs_of.cancel(first)
    assert ended(engine, first)["state"] == "cancelled"
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_stopping_ends_jobs_and_a_restart_calls_them_failed(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "time.sleep(600)")
    jobs_of.start({})
    first, second = (begin(jobs_of) for _ in range(2))
    begun = time.monotonic()
    jobs_of.stop()
    jobs_of.join(WAIT_S)
    assert time.monotonic() - begun < 5
    runner(bench, engine, "pass", at_once=0).start({})
    states = [row_of(engine, job_id) for job_id in (first, second)]
    assert [row["state"] for row in states] == ["failed", "failed"]
    assert states[1]["reason"] == "the service was restarted"


def begin_live(jobs_of: Runner, spec: dict[str, Any] | None = None) -> str:
    (job_id,) = jobs_of.begin("online", [Job(spec or {}, {}, nothing)])
    return job_id


def test_a_live_job_takes_no_place_from_the_others_and_has_no_end_by_time(bench: Bench, engine: Engine) -> None:
    body = """
    kind = json.loads((folder / "job.json").read_text())["kind"]
    say("metrics", records=1, epoch=1)
    time.sleep(600 if kind == "online" else 0)
    say("done", result={})
    """
    programs = dict.fromkeys(("training", "online"), bench.program(body))
    short = replace(LIMITS, time_s=1.0)
    jobs_of = Runner(engine, bench.data, short, 20.0, programs=programs, live_at_once=1)
    jobs_of.start({})
    live, waiting = (begin_live(jobs_of) for _ in range(2))
    begun = time.monotonic()
    for _ in range(3):
        assert ended(engine, begin(jobs_of))["state"] == "done"
    while time.monotonic() < begun + 2 * short.time_s:
        assert ended(engine, begin(jobs_of))["state"] == "done"
    assert [row_of(engine, one)["state"] for one in (live, waiting)] == ["running", "queued"]
    for one in (waiting, live):
        jobs_of.cancel(one)
        assert ended(engine, one)["state"] == "cancelled"
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_a_live_job_may_report_for_ever_within_a_bound(bench: Bench, engine: Engine) -> None:
    """Its file of events begins anew now and then, and its older metrics are thinned out."""
    body = """
    sys.path.insert(0, CHECKOUT)
    from partitioner import events
    events.FILE_BYTES = 20_000
    said, largest = events.Events(folder), 0
    for records in range(3000):
        said.say("metrics", records=records, metrics={"final": {"accuracy": 0.5}})
        largest = max(largest, (folder / "events.jsonl").stat().st_size)
        time.sleep(0.0005)
    said.say("done", result={"largest": largest})
    """
    jobs_of = runner(bench, engine, body.replace("CHECKOUT", repr(str(Path(__file__).parents[2]))))
    jobs_of.start({})
    row = ended(engine, begin_live(jobs_of))
    assert row["state"] == "done", row["reason"]
    assert row["result"]["largest"] < 21_000
    records = [entry["records"] for entry in row["metrics"]]
    assert len(records) <= 500 and records == sorted(records)
    assert records[0] == 0 and records[-100:] == list(range(2900, 3000))
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_what_a_live_job_proposes_is_heard_and_what_it_may_not_say_ends_it(bench: Bench, engine: Engine) -> None:
    heard: list[int] = []

    def hear(job_id: str, _folder: Path, event: Event) -> Callable[[Connection], None]:
        if event["number"] > 2:
            raise PermanentError("no more than two")
        heard.append(event["number"])
        row = {"hash": f"{job_id} {event['number']}", "role": "admin", "name": "n", "created_at": 1}

        def write(connection: Connection) -> None:
            connection.execute(insert(tokens).values(row))

        return write

    jobs_of = runner(bench, engine, "[say('candidate', number=n) for n in (1, 2, 3)]; time.sleep(600)")
    jobs_of.start({}, hears={"online": hear})
    row = ended(engine, begin_live(jobs_of))
    assert (row["state"], row["reason"], heard) == ("failed", "no more than two", [1, 2])
    with reading(engine) as connection:
        assert len(connection.execute(select(tokens.c.hash)).all()) == 2
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_of_several_jobs_all_are_put_in_line_or_none(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "pass", at_once=0, waiting=2)
    before = set(jobs_of.folder.iterdir())

    def refused(_connection: Connection, _job_id: str) -> None:
        raise PermanentError("no")

    good, bad = Job({}, {}, nothing), Job({}, {}, refused)
    with pytest.raises(PermanentError, match="no"):
        jobs_of.begin("training", [good, bad])
    with pytest.raises(TemporaryError, match="too many"):
        jobs_of.begin("training", [good, good, good])
    assert set(jobs_of.folder.iterdir()) == before
    with reading(engine) as connection:
        assert connection.execute(select(jobs)).all() == []
    assert len(jobs_of.begin("training", [good, good])) == 2


EPOCHS = """
import signal
kept = folder / "checkpoint.npz"
done = int(kept.read_text()) if kept.exists() else 0
for epoch in range(1, 7):
    say("metrics", epoch=epoch, epochs=6, metrics={})
    if epoch > done:
        (folder / "new").write_text(str(epoch))
        (folder / "new").rename(kept)
    if epoch == 4 and done < 4:
        (folder / "log").symlink_to(folder.parents[1] / "secret")
        (folder / "sub").mkdir()
        (folder / "segment-0.tflite").write_text("of a bundle")
        (folder / "segment-1.tflite").symlink_to(folder.parents[1] / "secret")
        END
say("done", result={"from": done, "left": sorted(path.name for path in folder.iterdir())})
"""
KILLED = EPOCHS.replace("END", "os.kill(os.getpid(), signal.SIGKILL)")
HANGS = EPOCHS.replace("END", "time.sleep(600)")
ON: dict[str, Again] = {"training": lambda _job_id: None}


def test_a_job_that_was_killed_goes_on_from_its_checkpoint(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, KILLED)
    jobs_of.start({}, ON)
    row = ended(engine, begin(jobs_of))
    assert (row["state"], row["result"]["from"]) == ("done", 4)
    assert row["result"]["left"] == [
        "checkpoint.npz", "events.jsonl", "job.json", "log.txt", "segment-0.tflite", "tmp",
    ]  # fmt: skip
    assert [entry["epoch"] for entry in row["metrics"]] == [1, 2, 3, 4, 5, 6], "each once"
    assert not (jobs_of.folder / row["id"] / "checkpoint.npz").exists(), "what has ended needs none"
    assert (bench.data / "secret").read_text() == "secret"
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_a_job_that_is_killed_each_time_has_failed(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "say('metrics', epoch=1, epochs=9, metrics={}); os.kill(os.getpid(), 9)")
    jobs_of.start({}, ON)
    row = ended(engine, begin(jobs_of))
    assert (row["state"], row["reason"]) == ("failed", "the job ended by signal SIGKILL")
    assert [entry["epoch"] for entry in row["metrics"]] == [1]
    jobs_of.stop()
    jobs_of.join(WAIT_S)


AWAY = """
kept = folder / "checkpoint.npz"
runs = int(kept.read_text()) if kept.exists() else 0
kept.write_text(str(runs + 1))
if runs < TIMES:
    say("failed", reason="Kafka gave nothing", passing=PASSING)
    sys.exit(2)
say("done", result={"runs": runs + 1})
"""


@pytest.mark.parametrize(
    ("times", "passing", "state", "runs"),
    [(2, True, "done", 3), (3, True, "failed", 3), (1, False, "failed", 1), (1, "'yes'", "failed", 1)],
)
def test_a_job_that_missed_what_it_needs_is_tried_again(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch, times: int, passing: object, state: str, runs: int
) -> None:
    monkeypatch.setattr("cloud.jobs.AGAIN_S", 0.0)
    jobs_of = runner(bench, engine, AWAY.replace("TIMES", str(times)).replace("PASSING", str(passing)))
    ran: list[str] = []
    whole = jobs_of._run

    def counted(task: Any, *how: Any) -> Report:
        ran.append(task.job_id)
        return whole(task, *how)

    monkeypatch.setattr(jobs_of, "_run", counted)
    jobs_of.start({}, ON)
    row = ended(engine, begin(jobs_of))
    assert (row["state"], len(ran)) == (state, runs)
    assert row["reason"] == (None if state == "done" else "Kafka gave nothing")
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_a_service_that_stops_leaves_its_jobs_in_line_for_the_next(bench: Bench, engine: Engine) -> None:
    first = runner(bench, engine, HANGS)
    first.start({}, ON)
    working, waiting, unwanted = (begin(first) for _ in range(3))
    first.cancel(unwanted)
    wait_for_checkpoint(first.folder / working, 4)
    first.stop()
    first.join(WAIT_S)
    assert [row_of(engine, job_id)["state"] for job_id in (working, waiting, unwanted)] == [
        "queued", "queued", "cancelled",
    ]  # fmt: skip
    asked: list[str] = []
    second = runner(bench, engine, KILLED)
    second.start({}, {"training": asked.append})
    row = ended(engine, working)
    assert (row["state"], row["result"]["from"], len(row["metrics"])) == ("done", 4, 6)
    assert ended(engine, waiting)["state"] == "done"
    assert asked == [working, waiting], "how to reach its stream is asked for anew"
    second.stop()
    second.join(WAIT_S)


def wait_for_checkpoint(folder: Path, epoch: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while not (folder / "checkpoint.npz").exists() or int((folder / "checkpoint.npz").read_text()) < epoch:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_job_that_cannot_go_on_says_why(bench: Bench, engine: Engine) -> None:
    first = runner(bench, engine, "pass", at_once=0)
    refused, lost = begin(first), begin(first)
    shutil.rmtree(first.folder / lost)

    def again(job_id: str) -> None:
        if job_id == refused:
            raise PermanentError("its stream is gone")

    runner(bench, engine, "pass", at_once=0).start({}, {"training": again})
    rows = [row_of(engine, job_id) for job_id in (refused, lost)]
    assert [row["state"] for row in rows] == ["failed", "failed"]
    assert rows[0]["reason"] == "its stream is gone" and "No such file" in rows[1]["reason"]


WHOLE_SERVICE = """
import sys, time
from pathlib import Path
from cloud.database import open_database
from cloud.job_process import Limits, Program
from cloud.jobs import Job, Runner
data, programs = map(Path, sys.argv[1:])
engine = open_database(f"sqlite:///{data.parent / 'sluice.db'}")
runner = Runner(engine, data, Limits(60, 10**9, 10**9, 10**6), 20.0, programs={"training": Program("tiny", programs)})
runner.start({}, {"training": lambda _job_id: None})
print(*runner.begin("training", [Job({}, {}, lambda connection, job_id: None)]), flush=True)
time.sleep(600)
"""


def test_jobs_of_a_service_that_was_killed_go_on_with_the_next(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, HANGS)
    service = subprocess.Popen(
        [sys.executable, "-c", WHOLE_SERVICE, str(bench.data), str(bench.programs)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert service.stdout is not None
    job_id = service.stdout.readline().strip()
    wait_for_checkpoint(jobs_of.folder / job_id, 4)
    service.send_signal(signal.SIGKILL)
    service.wait()
    service.stdout.close()
    assert row_of(engine, job_id)["state"] == "running", "nobody could say anything any more"
    jobs_of.start({}, ON)
    row = ended(engine, job_id)
    assert (row["state"], row["result"]["from"]) == ("done", 4)
    assert [entry["epoch"] for entry in row["metrics"]] == [1, 2, 3, 4, 5, 6]
    jobs_of.stop()
    jobs_of.join(WAIT_S)


def test_a_job_whose_records_cannot_be_written_leaves_nothing(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "pass")

    def record(_connection: Connection, _job_id: str) -> None:
        raise PermanentError("no")

    before = set(jobs_of.folder.iterdir())
    with pytest.raises(PermanentError):
        begin(jobs_of, record=record)
    assert set(jobs_of.folder.iterdir()) == before
    with reading(engine) as connection:
        assert connection.execute(select(jobs)).all() == []


def test_a_check_returns_its_result_and_leaves_nothing(bench: Bench, engine: Engine) -> None:
    jobs_of = runner(bench, engine, "say('done', result={'job': json.loads((folder / 'job.json').read_text())})")
    before = set(jobs_of.folder.iterdir())
    assert jobs_of.check({"model": {"source": "x"}}, {}) == {"job": {"kind": "check", "model": {"source": "x"}}}
    broken = runner(bench, engine, "say('failed', reason='line 3: no such layer'); sys.exit(2)")
    with pytest.raises(PermanentError, match="line 3: no such layer"):
        broken.check({}, {})
    assert set(jobs_of.folder.iterdir()) == before
    with writing(engine) as connection:
        assert connection.execute(select(jobs)).all() == []
