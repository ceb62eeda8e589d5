"""The REST service: what stands where, who may call it, and its beginning and end."""

from __future__ import annotations

import logging
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import Depends, FastAPI
from pydantic import BaseModel

from cloud import problems
from cloud.candidates import Candidates
from cloud.database import reading
from cloud.desired import tell_again
from cloud.routes import (
    answers,
    bundles,
    certificates,
    devices,
    evaluations,
    labels,
    models,
    online,
    partitions,
    predictions,
    rollouts,
    streams,
    trainings,
)
from cloud.service import Service, ServiceDep, admin, anyone
from cloud.settings import MB
from cloud.topics import ensure_fixed_topics
from cloud.uploads import BodyLimit
from cloud.watch.watcher import Watcher
from sluice.daemon.life import Backoff
from sluice.wire.errors import PermanentError, TemporaryError

log = logging.getLogger(__name__)

JOIN_S = 5.0


class Health(BaseModel):
    """The service answers and its database does too."""

    status: str
    version: str


def health(service: ServiceDep) -> Health:
    """Whether the service works; no token needed. 503 when its database is away."""
    with reading(service.engine):
        return Health(status="ok", version=version("sluice"))


def make_topics(service: Service, stop: threading.Event) -> None:
    """As soon as Kafka is there make the fixed topics and tell devices what is on record; one log line if it is not."""
    backoff, away = Backoff(), False
    while not stop.is_set():
        try:
            ensure_fixed_topics(service.settings)
            tell_again(service)
        except (TemporaryError, PermanentError) as error:
            if not away:
                log.warning("%s; topics are made and devices told when it is there", error)
            away = True
            stop.wait(backoff.wait_s())
        else:
            log.info("topics are there")
            return


def create_app(service: Service) -> FastAPI:
    """The web application on an open service; jobs and the making of topics run as long as it does."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        stop = threading.Event()
        service.runner.start(
            {
                "training": partial(trainings.keep_training, service),
                "partition": partial(partitions.keep_partition, service),
                "online": partial(online.keep_online, service),
            },
            {
                "training": partial(trainings.go_on, service),
                "online": partial(online.go_on, service),
                **dict.fromkeys(("evaluation", "live-evaluation"), partial(evaluations.go_on, service)),
            },
            {"online": partial(online.hear_candidate, service)},
        )
        topics = threading.Thread(target=make_topics, args=(service, stop), name="topics", daemon=True)
        topics.start()
        watcher = threading.Thread(target=Watcher(service).run, args=(stop,), name="certificates", daemon=True)
        watcher.start()
        promoter = threading.Thread(target=Candidates(service).run, args=(stop,), name="candidates", daemon=True)
        promoter.start()
        yield
        stop.set()
        service.runner.stop()
        service.runner.join(JOIN_S)
        watcher.join(JOIN_S)
        promoter.join(JOIN_S)

    app = FastAPI(
        title="Sluice",
        version=version("sluice"),
        description="Control plane of Sluice. Every error is a problem document (RFC 9457).",
        lifespan=life,
        docs_url="/v1/docs",
        redoc_url=None,
        openapi_url="/v1/openapi.json",
    )
    app.state.service = service
    app.add_middleware(BodyLimit, upload_bytes=service.settings.upload_mb * MB)
    problems.install(app)
    app.get("/v1/health", tags=["health"])(health)
    app.include_router(bundles.open_router, prefix="/v1")
    app.include_router(bundles.router, prefix="/v1", dependencies=[Depends(anyone)])
    app.include_router(answers.router, prefix="/v1")
    learning = (models, streams, trainings, online, evaluations, partitions)
    for resource in (*learning, devices, rollouts, predictions, labels, certificates):
        app.include_router(resource.router, prefix="/v1", dependencies=[Depends(admin)])
    return app
