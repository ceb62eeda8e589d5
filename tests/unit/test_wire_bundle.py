"""A bundle is what its digest and signature say, or it is not opened; a file is written whole or not at all."""

import base64
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from sluice.wire.bundle import (
    BLOBS,
    MANIFEST,
    SIGNATURE,
    Bundle,
    check_blob,
    check_manifest,
    open_bundle,
    read_blob,
    sha256,
    write_atomically,
    write_blob,
)
from sluice.wire.errors import PermanentError
from sluice.wire.manifest import Blob
from sluice.wire.signing import load_or_make_key, public_text, sign, verify
from tests.unit.wire_support import manifest


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """Two public keys, for rotation; the second one's owner signs."""
    return [public_text(load_or_make_key(tmp_path / name)) for name in ("old.pem", "new.pem")]


@pytest.fixture
def folder(tmp_path: Path, keys: list[str]) -> Path:
    """A signed bundle; `file` and `golden` of every segment are the same blob."""
    folder = tmp_path / "bundle"
    blob = write_blob(folder / BLOBS, b"segment")
    whole = manifest()
    segments = tuple(s.model_copy(update={"file": blob, "golden": blob}) for s in whole.segments)
    data = whole.model_copy(update={"segments": segments}).model_dump_json().encode()
    write_atomically(folder / MANIFEST, data)
    write_atomically(folder / SIGNATURE, sign(load_or_make_key(tmp_path / "new.pem"), data).encode())
    assert len(keys) == 2
    return folder


def test_a_whole_bundle_opens(folder: Path, keys: list[str]) -> None:
    digest = sha256((folder / MANIFEST).read_bytes())
    for bundle in (open_bundle(folder, digest, keys), open_bundle(folder, digest), open_bundle(folder)):
        assert isinstance(bundle, Bundle) and bundle.digest == digest
        assert bundle.read(bundle.manifest.segments[0].file) == b"segment"


def test_any_flipped_bit_of_the_manifest_is_refused(folder: Path, keys: list[str]) -> None:
    whole = (folder / MANIFEST).read_bytes()
    signature, digest = (folder / SIGNATURE).read_text(), sha256(whole)
    for place in range(0, len(whole), 50):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(PermanentError, match="wanted is"):
            check_manifest(bytes(damaged), signature, digest, keys)
        with pytest.raises(PermanentError, match="none of the trusted keys"):
            check_manifest(bytes(damaged), signature, None, keys)


def test_any_flipped_bit_of_the_signature_is_refused(folder: Path, keys: list[str]) -> None:
    whole = (folder / SIGNATURE).read_bytes()
    for place in range(len(whole) - 3):  # the last character has bits that mean nothing, then comes the padding
        for bit in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[place] ^= bit
            (folder / SIGNATURE).write_bytes(damaged)
            with pytest.raises(PermanentError, match=r"bundle \w{12}…: signature"):
                open_bundle(folder, None, keys)


def test_a_flipped_byte_of_a_blob_is_refused(folder: Path) -> None:
    blob = open_bundle(folder).manifest.segments[0].file
    (folder / BLOBS / blob.sha256).write_bytes(b"sEgment")
    with pytest.raises(PermanentError, match="is damaged: its content has digest"):
        open_bundle(folder).read(blob)
    (folder / BLOBS / blob.sha256).unlink()
    with pytest.raises(PermanentError, match=f"blob {blob.sha256[:12]}… cannot be read: No such file"):
        read_blob(folder / BLOBS, blob)
    check_blob(b"segment", blob.sha256)


def test_another_key_an_unsigned_bundle_and_another_digest_are_refused(folder: Path, keys: list[str]) -> None:
    with pytest.raises(PermanentError, match="signature was made by none of the trusted keys"):
        open_bundle(folder, None, keys[:1])
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        open_bundle(folder, None, [])
    with pytest.raises(PermanentError, match=f"manifest has digest .*, wanted is {'0' * 12}…"):
        open_bundle(folder, "0" * 64, keys)
    (folder / SIGNATURE).unlink()
    with pytest.raises(PermanentError, match="is not signed"):
        open_bundle(folder, None, keys)
    open_bundle(folder)


@pytest.mark.parametrize("of_zeros", [0, 1, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(keys: list[str], of_zeros: int) -> None:
    with pytest.raises(PermanentError, match=f"^signature of {of_zeros} bytes"):
        verify(keys, b"data", base64.b64encode(bytes(of_zeros)).decode())


RFC_8032 = [
    ("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
]  # fmt: skip
"""(public key, message, signature) of section 7.1."""
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.mark.parametrize(("key", "message", "signature"), RFC_8032)
def test_the_standards_own_signatures_hold_and_their_twins_do_not(key: str, message: str, signature: str) -> None:
    """Adding the group's order to the second half makes other bytes that a careless verifier takes as well."""
    keys = [base64.b64encode(bytes.fromhex(key)).decode()]
    first, second = bytes.fromhex(signature)[:32], bytes.fromhex(signature)[32:]
    verify(keys, bytes.fromhex(message), base64.b64encode(first + second).decode())
    twin = (int.from_bytes(second, "little") + ORDER).to_bytes(32, "little")
    with pytest.raises(PermanentError, match="none of the trusted keys"):
        verify(keys, bytes.fromhex(message), base64.b64encode(first + twin).decode())


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)])
def test_a_key_that_anyone_can_sign_for_verifies_nothing(key: bytes) -> None:
    """With a point of small order as the key, a signature of the same point and 0 holds for every message, or many."""
    for point in (bytes(32), b"\x01" + bytes(31)):
        for data in (b"", b"a", b"b", b"c", b"d", b"e"):
            with pytest.raises(PermanentError, match="none of the trusted keys"):
                verify([base64.b64encode(key).decode()], data, base64.b64encode(point + bytes(32)).decode())


@pytest.mark.parametrize("signature", ["", "no base64!", "AAAA", "é"])
def test_what_is_no_signature_is_refused(folder: Path, keys: list[str], signature: str) -> None:
    (folder / SIGNATURE).write_text(signature)
    with pytest.raises(PermanentError, match="signature"):
        open_bundle(folder, None, keys)


@pytest.mark.parametrize("key", ["", "AAAA", "not base64", "é"])
def test_a_trusted_key_that_is_none_is_named(folder: Path, key: str) -> None:
    with pytest.raises(PermanentError, match=f"trusted key '{key}' is no Ed25519 public key"):
        open_bundle(folder, None, [key])


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PermanentError, match=r"is not a bundle: No such file or directory \(manifest.json\)"):
        open_bundle(tmp_path / "nowhere")
    (tmp_path / MANIFEST).mkdir()
    with pytest.raises(PermanentError, match="is not a bundle: Is a directory"):
        open_bundle(tmp_path)


def test_writing_leaves_the_old_content_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "in" / "state.json"
    write_atomically(file, b"old")

    def full(_descriptor: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space"):
            write_atomically(file, b"new")
        with pytest.raises(OSError, match="no space"):
            write_blob(tmp_path / "in", b"blob")
    assert [(path.name, path.read_bytes()) for path in file.parent.iterdir()] == [("state.json", b"old")]
    write_atomically(file, b"new")
    assert [(path.name, path.read_bytes()) for path in file.parent.iterdir()] == [("state.json", b"new")]


def test_a_blob_is_named_by_its_content(tmp_path: Path) -> None:
    blob = write_blob(tmp_path, b"content")
    assert blob == write_blob(tmp_path, b"content") == Blob(sha256=sha256(b"content"), size=7)
    assert [path.name for path in tmp_path.iterdir()] == [blob.sha256]


def test_a_private_key_is_made_once_and_for_the_owner_alone(tmp_path: Path) -> None:
    key = load_or_make_key(tmp_path / "made" / "key.pem")
    assert public_text(load_or_make_key(tmp_path / "made" / "key.pem")) == public_text(key)
    assert (tmp_path / "made" / "key.pem").stat().st_mode & 0o777 == 0o600
    verify([public_text(key)], b"data", sign(key, b"data"))


def test_a_file_that_holds_no_signing_key_is_named(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    file.write_text("not a key")
    with pytest.raises(PermanentError, match=r"signing key .*key\.pem: "):
        load_or_make_key(file)
    other = generate_private_key(SECP256R1())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    file.write_bytes(other.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    with pytest.raises(PermanentError, match="is not an Ed25519 key"):
        load_or_make_key(file)
    file.write_bytes(other.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    with pytest.raises(PermanentError, match=r"signing key .*key\.pem: "):
        load_or_make_key(file)
