"""Where a signing key is: in a file, on a token, or behind a command.

    keys/publisher-acme.pem                a private key, encrypted PKCS#8, Ed25519 or ECDSA P-256
    pkcs11:token=acme;object=release       a key on a token or in a security module (RFC 7512)
    exec:sign-with-kms --key 7?public=acme.pub
                                           a command: bytes to sign on stdin, signature on stdout

All three give a signer that python-tuf takes. A secret is asked for by the caller's function, once,
and only when it is needed; it is never part of the name.
"""

import re
from pathlib import Path
from typing import Final

from securesystemslib.signer import Signer

from skerry.errors import UsageError
from skerry.io.exec_signer import open_exec
from skerry.io.key_files import Passphrase, open_pem, public_key, public_pem, read_public

__all__ = ["FORMS", "Passphrase", "open_signer", "public_key", "public_pem", "read_public"]

FORMS: Final = "a PEM file, pkcs11:token=NAME;object=NAME, or exec:COMMAND?public=FILE"
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
    scheme = SCHEME.match(spec)
    name = scheme[0].lower() if scheme else ""
    if name == "pkcs11:":
        from skerry.io.pkcs11_signer import open_pkcs11  # its library takes a moment to load

        return open_pkcs11(spec, passphrase)
    if name == "exec:":
        return open_exec(spec)
    if scheme or not spec:
        raise UsageError(f"expected a key as {FORMS}; got {spec!r}")
    return open_pem(Path(spec), passphrase)
