"""Signing keys: one spelling of a public key; errors about private keys do not repeat them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.crypto import signing
from anonymizer.errors import SigningKeyError
from tests.support.signing_keys import ADA, PUBLISHER, VARIABLE, pem, public_key


def test_a_public_key_is_written_in_one_way() -> None:
    raw = bytes.fromhex(PUBLISHER.public_key.keyval["public"])
    assert public_key(PUBLISHER) == "ed25519:" + base64.b64encode(raw).decode()
    found = signing.parse_public_key(public_key(PUBLISHER))
    assert (found.keyid, found.keyval) == (PUBLISHER.public_key.keyid, PUBLISHER.public_key.keyval)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.removeprefix("ed25519:"),
        lambda text: text.replace("ed25519:", "ED25519:"),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.rstrip("="),
        lambda text: text + "=",
        lambda text: text[:20],
        lambda text: "ed25519:" + base64.b64encode(bytes(31)).decode(),
        lambda text: "ed25519:" + base64.b64encode(bytes(33)).decode(),
        lambda text: text[:-2] + chr(ord(text[-2]) + 1) + "=",  # bits that base64 has no use for
        lambda text: "ed25519:" + "é" * 44,
        lambda text: "",
    ],
)
def test_a_public_key_in_any_other_spelling_is_refused(change: Any) -> None:
    text = "ed25519:" + base64.b64encode(bytes(range(32))).decode()
    signing.parse_public_key(text)
    with pytest.raises(ValueError):
        signing.parse_public_key(change(text))


def small_order_keys() -> list[bytes]:
    """All 14 encodings of points of small order that OpenSSL reads (RFC 8032, section 5.1.3)."""
    p, y8 = signing.FIELD_PRIME, signing.ORDER_8_Y
    encodings = [y | sign << 255 for y in (0, 1, p - 1, p, p + 1, y8, p - y8) for sign in (0, 1)]
    return [encoding.to_bytes(32, "little") for encoding in encodings]


@pytest.mark.parametrize("raw", small_order_keys(), ids=bytes.hex)
def test_a_public_key_that_anybody_can_sign_for_is_refused(raw: bytes) -> None:
    forged = 0
    for i in range(20):  # the attack works: points of small order as R, and S = 0
        for point in small_order_keys():
            try:
                ed25519.Ed25519PublicKey.from_public_bytes(raw).verify(point + bytes(32), b"%d" % i)
                forged += 1
            except InvalidSignature:
                pass
    assert forged
    with pytest.raises(ValueError, match="anybody can sign for"):
        signing.parse_public_key("ed25519:" + base64.b64encode(raw).decode())


@given(st.binary(min_size=1, max_size=16))
def test_a_private_key_that_repeats_itself_is_refused(part: bytes) -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes((part * 32)[:32])
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SigningKeyError, match=rf"^{VARIABLE}: repeats itself"):
        patch.setenv(VARIABLE, private_pem(key, serialization.NoEncryption()))
        signing.signer_from_env(VARIABLE)


def test_a_variable_holds_a_private_key_or_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ada.key").write_text(pem(ADA))
    for value in (pem(ADA), pem(ADA).replace("\n", "\\n"), f"\n{pem(ADA)}\n", str(tmp_path / "ada.key")):
        monkeypatch.setenv(VARIABLE, value)
        found = signing.signer_from_env(VARIABLE)
        assert found is not None and public_key(found) == public_key(ADA)
    for nothing in ("", "  \n"):
        monkeypatch.setenv(VARIABLE, nothing)
        assert signing.signer_from_env(VARIABLE) is None
    monkeypatch.delenv(VARIABLE)
    assert signing.signer_from_env(VARIABLE) is None


def rsa_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return private_pem(key, serialization.NoEncryption())


def private_pem(key: Any, encryption: Any) -> str:
    form = serialization.PrivateFormat.PKCS8
    text: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return text.decode()


WRONG = {
    "a secret that is no key": lambda: "correct horse battery staple",
    "a key of another kind": rsa_key,
    "a key with a password": lambda: private_pem(
        ed25519.Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret")
    ),
    "a public key": lambda: public_key(ADA),
    "half a key": lambda: pem(ADA)[:60],
    "a damaged key": lambda: pem(ADA).replace("M", "N"),
    "a long secret": lambda: "x" * 10_000,
    "hex": lambda: "deadbeef" * 8,
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", ["variable", "file", "file in variable"])
def test_an_invalid_private_key_is_refused_without_repeating_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, place: str
) -> None:
    value = WRONG[what]()
    (tmp_path / "a.key").write_text(value)
    monkeypatch.setenv(VARIABLE, value if place == "variable" else str(tmp_path / "a.key"))
    with pytest.raises(SigningKeyError) as caught:
        signing.signer_from_file(tmp_path / "a.key") if place == "file" else signing.signer_from_env(VARIABLE)
    text = str(caught.value)
    assert text.startswith("--key: " if place == "file" else f"{VARIABLE}: ") and "anonymizer keys" in text
    assert "\n" not in text and not [part for part in value.split() if len(part) > 6 and part in text]
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_missing_key_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.key", tmp_path, Path("a\0b")):
        with pytest.raises(SigningKeyError, match="no such file, or it cannot be read"):
            signing.signer_from_file(path)
