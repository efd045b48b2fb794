"""Signing keys: one spelling of a public key; errors about private keys do not repeat them."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

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
