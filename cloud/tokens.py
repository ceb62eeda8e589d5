"""Bearer tokens: who may call the REST service. Only their hashes are stored; a token is shown once, when it is made.

`admin` may do everything; `device` may fetch bundles and blobs and ask for its own answers, and nothing else.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any, Literal, NamedTuple, get_args

from sqlalchemy import Connection, func, insert, select, update

from cloud.tables import now_us, tokens
from sluice.wire.errors import PermanentError

Role = Literal["admin", "device"]
ROLES: tuple[Role, ...] = get_args(Role)
PREFIX = "sluice_"


def _hash(token: str) -> str:
    # a token carries 256 random bits, so a plain hash is as hard to turn back as a slow one
    return hashlib.sha256(token.encode()).hexdigest()


def create(connection: Connection, role: Role, name: str) -> tuple[int, str]:
    """Make a token for `name`; returns its number and the token itself."""
    token = PREFIX + secrets.token_urlsafe(32)
    row = insert(tokens).values(hash=_hash(token), role=role, name=name, created_at=now_us())
    key = connection.execute(row).inserted_primary_key
    return (int(key[0]) if key else 0), token


class Holder(NamedTuple):
    """Whom a token was made for."""

    role: Role
    name: str


def holder_of(connection: Connection, token: str) -> Holder | None:
    """Who holds `token`; None if there is no such token or it was revoked."""
    wanted = select(tokens.c.role, tokens.c.name).where(tokens.c.hash == _hash(token), tokens.c.revoked_at.is_(None))
    row = connection.execute(wanted).first()
    return None if row is None else Holder(*row)


def listed(connection: Connection) -> list[dict[str, Any]]:
    """All tokens without what would let anyone use them."""
    columns = [c for c in tokens.c if c.name != "hash"]
    return [dict(row) for row in connection.execute(select(*columns).order_by(tokens.c.id)).mappings()]


def revoke(connection: Connection, number: int) -> None:
    """Make token `number` useless; `PermanentError` if there is none of that number that still works."""
    gone = update(tokens).where(tokens.c.id == number, tokens.c.revoked_at.is_(None)).values(revoked_at=now_us())
    if connection.execute(gone).rowcount == 0:
        raise PermanentError(f"no token has the number {number}, or it was revoked before")


def any_admin(connection: Connection) -> bool:
    """Whether there is an admin token that works."""
    working = select(func.count()).where(tokens.c.role == "admin", tokens.c.revoked_at.is_(None))
    return bool(connection.execute(working).scalar())
