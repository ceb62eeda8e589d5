"""What tests of the control plane share: a service on loopback, small programs in place of its jobs, a bundle."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from cloud import tokens
from cloud.app import create_app
from cloud.database import writing
from cloud.job_process import Limits, Program
from cloud.jobs import Runner
from cloud.server import _listen, _Server
from cloud.service import Service, open_service
from cloud.settings import CloudSettings
from sluice.client import Client

LIMITS = Limits(time_s=20, memory=300_000_000, output=20_000_000, log=10_000)

PROGRAM = """
import hashlib, json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
job = json.loads((folder / "job.json").read_text())

def say(event, **values):
    with open(folder / "events.jsonl", "a") as file:
        file.write(json.dumps({"event": event, **values}) + "\\n")

def content():
    model = job["model"]
    return model["source"] if "source" in model else (folder / model["file"]).read_text(errors="replace")

source = content()
if "broken" in source:
    say("failed", reason="model source, line 1: NameError: name 'broken' is not defined")
    sys.exit(2)
if job["kind"] == "check":
    cut = {"ok": "uncut" not in source, "reason": "a skip connection crosses every cut", "segments": []}
    say("done", result={"inputs": [], "exits": ["final"], "classes": 2, "parameters": 1, "macs": 1, "cut": cut})
elif job["kind"] == "training":
    say("progress", what="reading the stream", done=1, total=1)
    for epoch in range(1, job["settings"]["epochs"] + 1):
        say("metrics", epoch=epoch, epochs=job["settings"]["epochs"], metrics={"final": {"accuracy": 0.9}})
    while "slow" in source:
        time.sleep(0.1)
    (folder / "model.keras").write_text("broken" if "spoilt" in source else "trained " + source)
    told = {"metrics": {"final": {"accuracy": 0.9}}, "confusion": {"final": {"matrix": [[1]]}}}
    say("done", result={**told, "records": 1, "seconds": 0.1})
elif job["kind"] == "online":
    metrics = {"final": {"accuracy": 0.9, "whole_accuracy": 0.8}}
    for records in range(1000):
        say("metrics", records=records, lag=0, drifts=0, metrics=metrics)
    (folder / "candidate-1.keras").write_text("broken" if "spoilt" in source else "learnt " + source)
    slices = ["elsewhere:0:0:1"] if "astray" in source else job["stream"]["slices"]
    for number in (1, 1, 2) if "hasty" in source else (1, 1):
        say("candidate", number=number, slices=slices, told={"accuracy": 0.9, "accuracy_before": 0.5})
    while "slow" in source and not (folder / "finish").exists():
        time.sleep(0.1)
    (folder / "model.keras").write_text("last")
    say("done", result={"records": 999, "drifts": 0, "metrics": metrics})
else:
    sys.path.insert(0, BUNDLE_MAKER)
    from bundle_maker import make_bundle
    make_bundle(folder / "bundle", job["name"], job["version"], damaged="damaged" in source)
    say("done", result={"digest": "", "summary": {}})
"""

BUNDLE_MAKER = '''
import hashlib, json

def make_bundle(folder, name, version, damaged=False):
    """A bundle whose manifest is valid; what its segments hold is nobody's business here."""
    blobs = folder / "blobs"
    blobs.mkdir(parents=True)
    def blob(text):
        data = text.encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(b"damaged" if damaged else data)
        return {"sha256": digest, "size": len(data)}
    spec = {"name": "h0", "dtype": "float32", "shape": [4], "scale": 0.1, "zero_point": 0}
    image = {"name": "image", "dtype": "float32", "shape": [8, 8]}
    def segment(index, inputs, outputs):
        return {"index": index, "file": blob(f"{name} {version} {index}"), "inputs": inputs, "outputs": outputs,
                "exit": {"name": f"e{index}", "logits": "l"}, "macs": 1, "golden": blob(f"golden {index}"),
                "tolerance": 0.1}
    def point(name, placement):
        policy = {"measure": "max_prob", "threshold": 0.9}
        return {"id": name, "placement": placement, "codec": "int8-zstd", "policies": [policy, policy]}
    manifest = {
        "model": name, "version": version, "labels": ["no", "yes"], "inputs": [image],
        "segments": [segment(0, [image], [spec]), segment(1, [spec], [])],
        "operating_points": [point("default", ["edge", "cloud"]), point("all-fog", ["fog", "fog"])],
        "provenance": {"created_at": "2026-11-20"},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "report.html").write_text(f"<!doctype html><title>{name}</title>")
'''


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: what it has open, its URL, an admin's client, plain HTTP with the admin's token."""

    service: Service
    url: str
    client: Client
    http: httpx.Client

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body)

    def problem(self, answer: httpx.Response, status: int) -> str:
        """The detail of a problem document; every error has to be one."""
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        return str(problem["detail"])


def programs(folder: Path) -> dict[str, Program]:
    """Small programs that keep the jobs' contract."""
    folder.mkdir(exist_ok=True)
    (folder / "bundle_maker.py").write_text(BUNDLE_MAKER)
    (folder / "small.py").write_text(PROGRAM.replace("BUNDLE_MAKER", repr(str(folder))))
    return dict.fromkeys(("check", "training", "partition", "online"), Program("small", folder))


@contextmanager
def running(settings: CloudSettings, folder: Path) -> Iterator[Running]:
    """Serve on a free port in a thread until the end of the block."""
    opened = open_service(settings, threading.Event())
    assert opened is not None
    runner = Runner(opened.engine, settings.data, LIMITS, 20.0, programs=programs(folder / "programs"))
    service = replace(opened, runner=runner)
    with writing(service.engine) as connection:
        _number, token = tokens.create(connection, "admin", "test")
    config = uvicorn.Config(create_app(service), log_config=None, log_level="warning")
    server = _Server(config, service, threading.Event())
    with _listen(settings) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        try:
            headers = {"Authorization": f"Bearer {token}"}
            with Client(url, token) as client, httpx.Client(base_url=url, headers=headers, timeout=30) as http:
                yield Running(service, url, client, http)
        finally:
            server.should_exit = True
            thread.join()
            service.engine.dispose()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def bundle_files(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    """A bundle's files as the multipart form that `POST /v1/bundles` takes."""
    manifest = (folder / "manifest.json").read_bytes()
    blobs = sorted((folder / "blobs").iterdir())
    return [("manifest", ("manifest.json", manifest)), *(("blobs", (b.name, b.read_bytes())) for b in blobs)]


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_bytes())
    return manifest
