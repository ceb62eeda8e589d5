"""The control plane from Python: `Client(url, token)`, one method a thing that one wants to do.

What comes back is the service's JSON as it is (its shape stands in the service's OpenAPI at `/v1/docs`). All methods
raise `PermanentError` with the service's own words when it refuses, `TemporaryError` when it is away or busy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from sluice.doors.http import HttpDoor
from sluice.wire.answers import Question, unpack
from sluice.wire.bundle import MANIFEST, check_manifest, open_bundle
from sluice.wire.errors import PermanentError, TemporaryError
from sluice.wire.manifest import MAX_MANIFEST_BYTES, Manifest
from sluice.wire.messages import Prediction
from sluice.wire.state import Announcement

Json = dict[str, Any]
OnJob = Callable[[Json], None]

POLL_S = 0.5
CHECK_S = 90.0
UPLOAD_S = 600.0
MAX_REPORT_BYTES = 20_000_000
LABELS_AT_ONCE = 1000
ENDED = ("done", "failed", "cancelled")


class Client:
    """A client of the control plane at `url` with an admin `token`; `ca`: see `HttpDoor`."""

    def __init__(self, url: str, token: str | None, ca: str | None = None) -> None:
        self._door = HttpDoor(url, token, ca)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._door.close()

    def add_model(self, name: str, source: str) -> Json:
        """Hand in a model as Python source; `PermanentError` with the cause when it is broken."""
        return self._json("POST", "/v1/models", {"name": name, "source": source}, timeout=CHECK_S)

    def upload_model(self, name: str, file: Path) -> Json:
        """Hand in a model as a `.keras` file; errors as in `add_model`."""
        with file.open("rb") as content:
            files = {"file": (file.name, content, "application/octet-stream")}
            return self._json("POST", "/v1/models", data={"name": name}, files=files, timeout=UPLOAD_S)

    def add_version(self, name: str, training_id: str) -> Json:
        """Make what a training made the next version of a model, so that it can be trained on."""
        return self._json("POST", f"/v1/models/{name}/versions", {"training": training_id}, timeout=CHECK_S)

    def models(self) -> list[Json]:
        """The newest version of every model."""
        return self._list("/v1/models")

    def streams(self) -> list[Json]:
        """Announced data streams and what retention left of them."""
        return self._list("/v1/streams")

    def stream(self, stream: str | Announcement, wait_s: float = 0.0) -> Json:
        """One announced data stream; waits up to `wait_s` seconds for it to be known.

        `stream` is its id; or what sending it returned, since what was sent before under the same id is another.
        """
        name, slices = (stream, []) if isinstance(stream, str) else (stream.stream_id, stream.slices)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                found = self._json("GET", f"/v1/streams/{name}")
                if set(slices) <= set(found["announcement"]["slices"]):
                    return found
                raise PermanentError(f"the service does not know yet what was sent last as stream {name!r}")
            except PermanentError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_S)

    def train(self, model: str, stream_id: str, version: int | None = None, **settings: Any) -> Json:
        """Start a training; `settings` as `sluice.wire.training.TrainingSettings` has them, checked by the service."""
        body = {"model": model, "version": version, "stream_id": stream_id, "settings": settings}
        return self._json("POST", "/v1/trainings", body)

    def compare(self, models: Sequence[str | tuple[str, int]], stream_id: str, **settings: Any) -> Json:
        """Start a training for each of several models (a name, or a name and a version) on one stream.

        `comparison` of what comes back is their id in common, `trainings` are they, in the order of `models`.
        """
        named = [(one, None) if isinstance(one, str) else one for one in models]
        wanted = [{"model": name, "version": version} for name, version in named]
        return self._json("POST", "/v1/trainings", {"models": wanted, "stream_id": stream_id, "settings": settings})

    def evaluate(
        self,
        stream_id: str,
        *,
        model: str | None = None,
        version: int | None = None,
        training: str | None = None,
        bundle: str | None = None,
        operating_point: str = "default",
        **settings: Any,
    ) -> Json:
        """Start an evaluation of a model's version (the newest by default), of what a training made, or of a bundle.

        `settings` as `sluice.wire.evaluation.EvaluationSettings` has them: `slices`, or `live` for a consumer group.
        """
        named: Json = {"model": model, "version": version, "training": training}
        if bundle is not None:
            named |= {"bundle": bundle, "operating_point": operating_point}
        return self._json("POST", "/v1/evaluations", {**named, "stream_id": stream_id, "settings": settings})

    def evaluation(self, evaluation_id: str) -> Json:
        """An evaluation: state, and the figures so far."""
        return self._json("GET", f"/v1/evaluations/{evaluation_id}")

    def evaluations(self) -> list[Json]:
        """The newest evaluations, newest first, with their last figures and without their confusion matrices."""
        return self._list("/v1/evaluations")

    def finish_evaluation(self, evaluation_id: str) -> Json:
        """Let a live evaluation come to its end, with what it has counted."""
        return self._json("POST", f"/v1/evaluations/{evaluation_id}/finish")

    def cancel_evaluation(self, evaluation_id: str) -> Json:
        """End an evaluation; its figures so far stay."""
        return self._json("POST", f"/v1/evaluations/{evaluation_id}/cancel")

    def wait_for_evaluation(self, evaluation_id: str, on_change: OnJob = lambda _job: None) -> Json:
        """Wait until an evaluation is done; as `wait_for_training`."""
        return self._wait(f"/v1/evaluations/{evaluation_id}", on_change)

    def training(self, training_id: str) -> Json:
        """A training: state, progress, metrics so far."""
        return self._json("GET", f"/v1/trainings/{training_id}")

    def trainings(self, comparison: str | None = None) -> list[Json]:
        """The newest trainings, or those of one comparison, newest first; without their confusion matrices."""
        found: list[Json] = self._door.call("GET", "/v1/trainings", params=_given({"comparison": comparison}))
        return found

    def cancel_training(self, training_id: str) -> Json:
        """End a training."""
        return self._json("POST", f"/v1/trainings/{training_id}/cancel")

    def trained_model(self, training_id: str, limit: int = 2_000_000_000) -> bytes:
        """The trained model as the bytes of a `.keras` file."""
        return self._door.get_bytes(f"/v1/trainings/{training_id}/model", limit)

    def learn_on(
        self,
        stream_id: str,
        *,
        model: str | None = None,
        version: int | None = None,
        training: str | None = None,
        topics: Sequence[str] = (),
        partition: Json | None = None,
        cut: bool = True,
        **settings: Any,
    ) -> Json:
        """Begin to learn on from a live stream, with a version of a model or the result of a training.

        `topics`: those of the announced stream by default. `settings` as `sluice.wire.online.OnlineSettings` has them;
        `partition`: those of its candidates' partitions, which not `cut` are versions alone.
        """
        begin = {"model": model, "version": version, "training": training}
        where = {"stream_id": stream_id, "topics": list(topics)}
        cutting = (partition or {}) if cut else None
        return self._json("POST", "/v1/online", {**begin, **where, "settings": settings, "partition": cutting})

    def online(self, online_id: str) -> Json:
        """An online job: state, metrics so far, candidates."""
        return self._json("GET", f"/v1/online/{online_id}")

    def online_jobs(self) -> list[Json]:
        """The newest online jobs, each with the last of its metrics."""
        return self._list("/v1/online")

    def finish_online(self, online_id: str) -> Json:
        """Let an online job come to its end; then what it has learnt is there (`learnt_model`)."""
        return self._json("POST", f"/v1/online/{online_id}/finish")

    def cancel_online(self, online_id: str) -> Json:
        """End an online job without a model; its candidates stay."""
        return self._json("POST", f"/v1/online/{online_id}/cancel")

    def learnt_model(self, online_id: str, limit: int = 2_000_000_000) -> bytes:
        """The model of an online job that is done, as the bytes of a `.keras` file."""
        return self._door.get_bytes(f"/v1/online/{online_id}/model", limit)

    def wait_for_online(self, online_id: str, on_change: OnJob = lambda _job: None) -> Json:
        """Wait until an online job is done, if it ever is; as `wait_for_training`."""
        return self._wait(f"/v1/online/{online_id}", on_change)

    def training_log(self, training_id: str) -> str:
        """What a training's job printed, as far as it is kept."""
        return self._door.get_bytes(f"/v1/trainings/{training_id}/log", MAX_REPORT_BYTES).decode(errors="replace")

    def partition(self, training_id: str, **settings: Any) -> Json:
        """Start to cut a trained model; `settings` as `sluice partition` takes them (`docs/partition.md`)."""
        return self._json("POST", "/v1/partitions", {"training": training_id, "settings": settings})

    def partition_of(self, partition_id: str) -> Json:
        """A partition: state, progress, the bundle that came of it."""
        return self._json("GET", f"/v1/partitions/{partition_id}")

    def report(self, partition_id: str) -> str:
        """The report of a partition that is done, as an HTML page."""
        return self._door.get_bytes(f"/v1/partitions/{partition_id}/report", MAX_REPORT_BYTES).decode()

    def wait_for_training(self, training_id: str, on_change: OnJob = lambda _job: None) -> Json:
        """Wait until a training is done; `on_change` hears of it now and then. `PermanentError`: it failed."""
        return self._wait(f"/v1/trainings/{training_id}", on_change)

    def wait_for_comparison(self, started: Json, on_change: OnJob = lambda _job: None) -> list[Json]:
        """Wait until no training of a comparison (as `compare` returned it) waits or runs, and return them in its
        order; whether one failed stands in its `state`. `on_change` hears of each now and then."""
        order = [one["id"] for one in started["trainings"]]
        while True:
            found = {one["id"]: one for one in self.trainings(started["comparison"])}
            jobs = [found[one] for one in order]
            for job in jobs:
                on_change(job)
            if all(job["state"] in ENDED for job in jobs):
                return jobs
            time.sleep(POLL_S)

    def wait_for_partition(self, partition_id: str, on_change: OnJob = lambda _job: None) -> Json:
        """Wait until a partition is done; as `wait_for_training`."""
        return self._wait(f"/v1/partitions/{partition_id}", on_change)

    def bundles(self) -> list[Json]:
        """The newest bundles."""
        return self._list("/v1/bundles")

    def manifest(self, digest: str) -> Manifest:
        """The manifest of a bundle, checked against its digest."""
        data = self._door.get_bytes(f"/v1/bundles/{digest}/manifest", MAX_MANIFEST_BYTES)
        return check_manifest(data, None, digest, None)

    def upload_bundle(self, folder: Path) -> Json:
        """Bring a bundle that was made offline; the service signs it."""
        bundle = open_bundle(folder)
        blobs = {blob.sha256: blob for blob in bundle.manifest.blobs()}
        files = [("manifest", (MANIFEST, (folder / MANIFEST).read_bytes()))]
        files += [("blobs", (digest, bundle.read(blob))) for digest, blob in blobs.items()]
        return self._json("POST", "/v1/bundles", files=files, timeout=UPLOAD_S)

    def public_keys(self) -> list[str]:
        """The keys that devices should trust."""
        keys: list[str] = self._json("GET", "/v1/keys")["public_keys"]
        return keys

    def add_device(self, device_id: str) -> Json:
        """Register a device; its `token` is shown only in this answer."""
        return self._json("POST", "/v1/devices", {"device_id": device_id})

    def devices(self) -> list[Json]:
        """All registered devices: desired, reported, status."""
        return self._list("/v1/devices")

    def device(self, device_id: str) -> Json:
        """One registered device."""
        return self._json("GET", f"/v1/devices/{device_id}")

    def answers(self, device_id: str, epoch: str, seqs: Sequence[int]) -> list[Prediction]:
        """The final predictions that the results know of some samples (at most 500) of a device.

        `UnknownSchemaError` when one of them may be of a newer schema.
        """
        body = Question(epoch=epoch, seqs=list(seqs)).model_dump()
        return [unpack(text) for text in self._json("POST", f"/v1/devices/{device_id}/answers", body)["answers"]]

    def take_off(self, device_id: str, model: str) -> Json:
        """Tell a device to run a model no longer."""
        return self._json("DELETE", f"/v1/devices/{device_id}/models/{model}")

    def request_profile(self, device_id: str, model: str | None = None) -> Json:
        """Tell a device to measure the segments that it runs (of `model`, or of its first model);
        `wait_for_profile` waits for the answer."""
        return self._json("POST", f"/v1/devices/{device_id}/profile", params=_given({"model": model}))

    def wait_for_profile(self, request: Json, timeout_s: float) -> Json:
        """The profile (`sluice.wire.profile`) that answers a request.

        `TemporaryError` when there is none after `timeout_s` seconds, `PermanentError` when the device could not.
        """
        deadline, wanted = time.monotonic() + timeout_s, request["profile"]
        while True:
            reported = self.device(request["device_id"])["reported"] or {}
            measured: Json | None = reported.get("measured")
            if measured is not None and measured.get("request") == wanted:
                return measured
            if wanted in str(reported.get("last_error")):
                raise PermanentError(f"{request['device_id']}: {reported['last_error']}")
            if time.monotonic() >= deadline:
                raise TemporaryError(f"after {timeout_s:g} s device {request['device_id']!r} has not answered")
            time.sleep(POLL_S)

    def roll_out(
        self,
        bundle: str,
        devices: Sequence[str] | str = "all",
        operating_point: str = "default",
        bounds: Json | None = None,
    ) -> Json:
        """Tell devices (a list of names, or `all`) to run a bundle at one of its operating points.

        `bounds` (`sluice.wire.state.Bounds`): what the run has to keep to, or a device goes back by itself.
        """
        wanted = devices if isinstance(devices, str) else list(devices)
        body = {"bundle": bundle, "devices": wanted, "operating_point": operating_point, "bounds": bounds}
        return self._json("POST", "/v1/rollouts", body)

    def rollout(self, rollout_id: str) -> Json:
        """A rollout and how far each device is."""
        return self._json("GET", f"/v1/rollouts/{rollout_id}")

    def wait_for_rollout(self, rollout_id: str, timeout_s: float, on_change: OnJob = lambda _rollout: None) -> Json:
        """Wait until no device is pending. `TemporaryError` when some still are after `timeout_s` seconds."""
        deadline = time.monotonic() + timeout_s
        while True:
            rollout = self.rollout(rollout_id)
            on_change(rollout)
            pending = [d["device_id"] for d in rollout["devices"] if d["state"] == "pending"]
            if not pending:
                return rollout
            if time.monotonic() >= deadline:
                raise TemporaryError(f"after {timeout_s:g} s these devices have not answered: {', '.join(pending)}")
            time.sleep(POLL_S)

    def predictions(self, **filters: Any) -> Json:
        """A page of predictions; `filters`: device, model, since (UTC µs), after, limit, newest."""
        return self._json("GET", "/v1/predictions", params=_given(filters))

    def every_prediction(self, **filters: Any) -> Iterator[Json]:
        """All predictions that there are now, in the order of arrival."""
        after = 0
        while page := self.predictions(**filters, after=after, limit=1000)["predictions"]:
            yield from page
            after = page[-1]["id"]

    def summary(self, **filters: Any) -> Json:
        """Counts by tier, status, reason, model and device; `filters`: device, model, since."""
        return self._json("GET", "/v1/predictions/summary", params=_given(filters))

    def audits(self, **filters: Any) -> list[Json]:
        """Whether exits still hold, by model, bundle and exit; `filters`: device, model, since."""
        found: list[Json] = self._door.call("GET", "/v1/predictions/audits", params=_given(filters))
        return found

    def label(self, labels: Sequence[Json]) -> None:
        """Say what samples really were (`sluice.wire.labels.Label`); 1000 at a time. The same again changes nothing."""
        for i in range(0, len(labels), LABELS_AT_ONCE):
            self._json("POST", "/v1/labels", {"labels": list(labels[i : i + LABELS_AT_ONCE])})

    def every_label(self, **filters: Any) -> Iterator[Json]:
        """All answered samples that have a label, in the order of arrival; `filters`: device, model, since."""
        after = 0
        while page := self._json("GET", "/v1/labels", params=_given(filters | {"after": after, "limit": 1000}))[
            "labels"
        ]:
            yield from page
            after = page[-1]["id"]

    def accuracy(self, **filters: Any) -> list[Json]:
        """How many answers were right, by time, model, bundle, tier and exit, as far as labels tell.

        `filters`: device, model, bundle, tier, exit, since and until (UTC µs), every_s (length of a time).
        """
        found: list[Json] = self._door.call("GET", "/v1/accuracy", params=_given(filters))
        return found

    def certificates(self, **filters: Any) -> list[Json]:
        """Whether bundles keep what they promised, as audits see it, by operating point; `filters`: model."""
        found: list[Json] = self._door.call("GET", "/v1/certificates", params=_given(filters))
        return found

    def _wait(self, path: str, on_change: OnJob) -> Json:
        while True:
            job = self._json("GET", path)
            on_change(job)
            if job["state"] == "done":
                return job
            if job["state"] in ENDED:
                raise PermanentError(f"{job['id']} {job['state']}: {job['reason']}")
            time.sleep(POLL_S)

    def _json(self, method: str, path: str, body: object | None = None, **options: Any) -> Json:
        answer: Json = self._door.call(method, path, body, **options)
        return answer

    def _list(self, path: str) -> list[Json]:
        answer: list[Json] = self._door.call("GET", path)
        return answer


def _given(filters: Json) -> Json:
    return {name: value for name, value in filters.items() if value is not None}


def stream(
    bootstrap: str,
    topic: str,
    x: Any,
    y: Any = None,
    *,
    stream_id: str,
    options: dict[str, str] | None = None,
    **how: Any,
) -> Announcement:
    """Send a data stream to Kafka and announce it, in one call.

    `x`: samples (n, *shape) and `y` (n,) class numbers, -1 where a sample has none; or a DataFrame as `x` and the
    name of its label's column as `y`. `options`: librdkafka's settings; `how`: those of `Sender`, such as
    `format`, `labels`, `validation_rate`, `partitions`, `progress`. Raises as `sluice.streams.send.send_stream`.
    Record by record: `sluice.streams.send.Sender`.
    """
    from sluice.doors.kafka import KafkaCluster
    from sluice.streams.files import table
    from sluice.streams.send import send_stream

    if hasattr(x, "columns"):
        found = table({str(name): x[name].to_numpy() for name in x.columns}, label=y)
        x, y = found.x, found.y
        how = {"labels": found.labels, "features": found.features, **how}
    cluster = KafkaCluster(bootstrap=bootstrap, options=options or {})
    return send_stream(cluster, topic, x, y, stream_id=stream_id, **how)
