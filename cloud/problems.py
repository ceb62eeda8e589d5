"""Errors as problem documents (RFC 9457, `application/problem+json`), whatever went wrong and wherever.

A client learns what to do about it, and never sees a stack trace; a defect's stands in the log.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from sluice.wire.errors import PermanentError, TemporaryError

MEDIA_TYPE = "application/problem+json"


def problem(status: int, detail: str, headers: dict[str, str] | None = None, **more: Any) -> JSONResponse:
    """A problem document; `more` are members of its own kind."""
    content = {"type": "about:blank", "title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(content | more, status, headers, MEDIA_TYPE)


def missing(kind: str, name: object) -> HTTPException:
    """The error for something that is not there."""
    return HTTPException(404, f"there is no {kind} {str(name)[:100]!r}")


def install(app: FastAPI) -> None:
    """Make every error of `app` a problem document."""
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(PermanentError)(_permanent)
    app.exception_handler(TemporaryError)(_temporary)
    app.exception_handler(Exception)(_defect)


async def _http(_request: Request, error: HTTPException) -> JSONResponse:
    return problem(error.status_code, error.detail, dict(error.headers) if error.headers else None)


async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
    causes = [
        {"where": ".".join(str(step) for step in cause["loc"][1:]), "what": cause["msg"]} for cause in error.errors()
    ]
    first = causes[0]
    detail = f"{first['where']}: {first['what']}" if first["where"] else first["what"]
    return problem(422, detail, errors=causes)


async def _permanent(_request: Request, error: PermanentError) -> JSONResponse:
    return problem(422, str(error))


async def _temporary(_request: Request, error: TemporaryError) -> JSONResponse:
    return problem(503, str(error), {"Retry-After": str(max(1, round(error.delay)))})


async def _defect(_request: Request, _error: Exception) -> JSONResponse:
    # the server logs the exception itself, with its stack
    return problem(500, "the service has a defect; its log says more")
