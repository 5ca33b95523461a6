"""Where a signing key is: in a file, on a token, or behind a command.

    keys/publisher-acme.pem                a private key, encrypted PKCS#8, Ed25519 or ECDSA P-256
    pkcs11:token=acme;object=release       a key on a token or in a security module (RFC 7512)
    exec:sign-with-kms --key 7?public=acme.pub
                                           a command: bytes to sign on stdin, signature on stdout

All three give a signer that python-tuf takes. A secret is asked for by the caller's function, once,
and only when it is needed; it is never part of the name.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import Signer, SSlibKey
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata

from skerry.errors import NotFoundError, SkerryError, TrustError, UsageError
from skerry.io.exec_signer import open_exec
from skerry.io.key_files import (
    Passphrase,
    TokenName,
    is_public,
    key_id_of,
    open_pem,
    public_key,
    public_pem,
    read_public,
)

__all__ = [
    "FORMS",
    "KEY_HELP",
    "PASSPHRASE_HELP",
    "PASSPHRASE_VARIABLE",
    "PIN_VARIABLE",
    "Passphrase",
    "TokenName",
    "add_signature",
    "key_id_of",
    "new_passphrase_from",
    "open_signer",
    "passphrase_from",
    "public_key",
    "public_pem",
    "read_key",
    "read_public",
]

FORMS: Final = "a PEM file, pkcs11:token=NAME;object=NAME, or exec:COMMAND?public=FILE"
KEY_HELP: Final = f"The private key: {FORMS}."
PASSPHRASE_VARIABLE: Final = "SKERRY_KEY_PASSPHRASE"  # noqa: S105 - the variable's name
PIN_VARIABLE: Final = "SKERRY_KEY_PIN"
PASSPHRASE_HELP: Final = (
    f"File with the key's passphrase or PIN (or ${PASSPHRASE_VARIABLE}, ${PIN_VARIABLE})."
)
MAX_PASSPHRASE_BYTES: Final = 4096
SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def open_signer(spec: str, passphrase: Passphrase) -> Signer:
    """Return the signer that a key's name stands for.

    Args:
        spec: a PEM file, a `pkcs11:` URI or an `exec:` command; a file whose name looks like a
            scheme is written as `./name:x`.
        passphrase: returns the passphrase of an encrypted file or the PIN of a token, given what
            it opens; not called where nothing is locked.

    Raises:
        UsageError: none of the three forms, or a file that cannot be read.
        NotFoundError: no such file, token or key.
        TrustError: `key_unreadable`: not a key, or the passphrase or PIN does not open it;
            `key_type`: neither Ed25519 nor ECDSA P-256; `signer_failed`: a token refused.
        UnreachableError: the module of a token does not start.
    """
    name = _scheme(spec)
    if name == "pkcs11:":
        from skerry.io.pkcs11_signer import open_pkcs11  # its library takes a moment to load

        return open_pkcs11(spec, passphrase)
    if name == "exec:":
        return open_exec(spec)
    if name or not spec:
        raise UsageError(f"expected a key as {FORMS}; got {spec!r}")
    return open_pem(Path(spec), passphrase)


def read_key(spec: str, passphrase: Passphrase) -> SSlibKey:
    """Return the public key of a `.pub` file, or the public half of what `open_signer` opens.

    Raises:
        SkerryError: as `open_signer` and `read_public` do.
    """
    if not _scheme(spec) and is_public(Path(spec)):
        return read_public(Path(spec))
    key = open_signer(spec, passphrase).public_key
    assert isinstance(key, SSlibKey)
    return key


def add_signature(metadata: Metadata[Any], signer: Signer, *, append: bool = False) -> None:
    """Sign metadata in place; python-tuf's own `sign` hides what a token or a command said.

    Args:
        metadata: what is signed.
        signer: from `open_signer`.
        append: keep the signatures of other keys.

    Raises:
        SkerryError: as the signer says.
        TrustError: `signer_failed`: it failed in a way of its own.
    """
    try:
        metadata.sign(signer, append=append)
    except UnsignedMetadataError as error:
        if isinstance(error.__cause__, SkerryError):
            raise error.__cause__ from None
        raise TrustError(f"expected a signature, got: {error}", "signer_failed") from None


def passphrase_from(
    file: Path | None, environment: Mapping[str, str], ask: Callable[[str], str] | None
) -> Passphrase:
    """Return where passphrases and PINs come from: a file, else the environment, else a person.

    Args:
        file: holds one for every key; line ends after it do not count.
        environment: SKERRY_KEY_PASSPHRASE opens files, SKERRY_KEY_PIN tokens: a token that locks
            after three tries must not be tried with what opens the fleet's own keys.
        ask: shows what a secret opens and returns it; None where nobody sits at a terminal.
    """

    def passphrase(what: str) -> bytes:
        if file is not None:
            return _secret_in(file)
        is_pin = isinstance(what, TokenName)
        variable = PIN_VARIABLE if is_pin else PASSPHRASE_VARIABLE
        if given := environment.get(variable):
            return given.encode(errors="surrogateescape")
        if ask is not None:
            return ask(what).encode()
        raise TrustError(
            f"expected the {'PIN' if is_pin else 'passphrase'} of {what}; give --passphrase-file, or "
            f"set {variable}",
            "key_unreadable",
        )

    return passphrase


def new_passphrase_from(
    environment: Mapping[str, str], ask: Callable[[str], str] | None
) -> Passphrase:
    """Return where passphrases for new keys come from: the environment, else a person.

    Args:
        environment: with SKERRY_KEY_PASSPHRASE or not.
        ask: asks for one, twice; None where nobody sits at a terminal.
    """

    def passphrase(what: str) -> bytes:
        if given := environment.get(PASSPHRASE_VARIABLE):
            return given.encode(errors="surrogateescape")
        if ask is not None:
            return ask(what).encode()
        raise UsageError(f"expected passphrases from a terminal, or one in {PASSPHRASE_VARIABLE}")

    return passphrase


def _scheme(spec: str) -> str:
    found = SCHEME.match(spec)
    return found[0].lower() if found else ""


def _secret_in(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PASSPHRASE_BYTES + 1)
    except FileNotFoundError:
        raise NotFoundError(f"expected a passphrase in {path}, and there is no such file") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    if len(data) > MAX_PASSPHRASE_BYTES:
        raise UsageError(f"expected a passphrase of at most {MAX_PASSPHRASE_BYTES} bytes in {path}")
    return data.rstrip(b"\r\n")
