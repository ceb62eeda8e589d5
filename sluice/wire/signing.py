"""Ed25519 signatures on manifests and desired state.

A device trusts the public keys that it was provisioned with (two, for rotation) and obeys nothing else. Keys and
signatures are written as base64.

Whoever obeys verifies with libsodium (PyNaCl). Whoever signs is the control plane alone, with `cryptography`, which
reads and writes keys' files too; a device does without it and the 7 MB of memory that it takes.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey
from pydantic import AfterValidator

from sluice.wire.errors import PermanentError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE_BYTES = 64


def load_or_make_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path` (PEM, mode 0600), made on first use.

    Raises `PermanentError` if the file is there but holds no Ed25519 key.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
        return key
    try:
        loaded = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, TypeError, ValueError) as error:
        raise PermanentError(f"signing key {path}: {error}") from error
    if not isinstance(loaded, Ed25519PrivateKey):
        raise PermanentError(f"signing key {path} is not an Ed25519 key")
    return loaded


def public_text(key: Ed25519PrivateKey) -> str:
    """The public half as base64 text, as devices are provisioned with it."""
    raw = key.public_key().public_bytes_raw()
    return base64.b64encode(raw).decode()


def sign(key: Ed25519PrivateKey, data: bytes) -> str:
    """The signature of `data` as base64 text."""
    return base64.b64encode(key.sign(data)).decode()


def check_key(text: str) -> str:
    """Return `text` if it is an Ed25519 public key in base64; `ValueError` otherwise, as pydantic wants it."""
    try:
        VerifyKey(base64.b64decode(text, validate=True))
    except ValueError as error:
        raise ValueError(f"{text[:60]!r} is no Ed25519 public key in base64") from error
    return text


PublicKey = Annotated[str, AfterValidator(check_key)]


def verify(public_keys: Iterable[str], data: bytes, signature: str) -> None:
    """Return if one of `public_keys` (base64) made `signature` (base64) over `data`; else `PermanentError`.

    A text among `public_keys` that is no key is a `PermanentError` too, which says so.
    """
    try:
        raw = base64.b64decode(signature, validate=True)
    except ValueError as error:
        raise PermanentError("signature is not base64") from error
    if len(raw) != SIGNATURE_BYTES:
        raise PermanentError(f"signature of {len(raw)} bytes, where {SIGNATURE_BYTES} are expected")
    for text in public_keys:
        try:
            key = VerifyKey(base64.b64decode(text, validate=True))
        except ValueError as error:
            raise PermanentError(f"trusted key {text[:60]!r} is no Ed25519 public key in base64") from error
        try:
            key.verify(data, raw)
        except BadSignatureError:
            continue
        else:
            return
    raise PermanentError("signature was made by none of the trusted keys")
