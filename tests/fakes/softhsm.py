"""A security module in software: real tokens behind a real PKCS#11 module, in a folder of a test."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pkcs11 import Attribute, KeyType, ObjectClass
from pkcs11.util.ec import encode_named_curve_parameters

from skerry.io.pkcs11_signer import MODULE_VARIABLE
from tests.fakes.programs import find_program

MODULES = tuple(
    path
    for place in ("/usr/lib", "/usr/lib64", "/usr/local/lib")
    for pattern in ("softhsm/libsofthsm2.so", "*/softhsm/libsofthsm2.so")
    for path in sorted(Path(place).glob(pattern))
)
CONFIGURED = "SOFTHSM2_CONF"
PIN = b"4321-pin"
SO_PIN = "8765-officer"
ED25519 = "1.3.101.112"

PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class SoftHsm:
    """Tokens in a folder; the module reads its environment when it is loaded, so load it late."""

    def __init__(self, folder: Path) -> None:
        (folder / "tokens").mkdir(parents=True)
        self.folder = folder
        self.module = str(MODULES[0])
        self.config = folder / "softhsm2.conf"
        self.config.write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")

    def make_token(self, label: str) -> None:
        self._util("--init-token", "--free", "--label", label, "--so-pin", SO_PIN, "--pin", PIN.decode())  # fmt: skip
        pkcs11.unload(self.module)  # it counts its slots once

    def put(self, token: str, label: str, identity: str, key: PrivateKey) -> str:
        """Write a key that was made elsewhere to a token, and return its URI."""
        pem = self.folder / "import.pem"
        pem.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._util("--import", str(pem), "--token", token, "--label", label, "--id", identity,
                   "--pin", PIN.decode())  # fmt: skip
        pem.unlink()
        pkcs11.unload(self.module)
        return uri(token, label)

    def make_key(self, token: str, label: str, curve: str = "secp256r1", *, public: bool = True,
                 sign: bool = True, ask_each_time: bool = False) -> str:  # fmt: skip
        """Have the token make a key pair, and return its URI."""
        kind = KeyType.EC_EDWARDS if curve == ED25519 else KeyType.EC
        with (
            pkcs11.lib(self.module)
            .get_token(token_label=token)
            .open(rw=True, user_pin=PIN.decode()) as session
        ):
            parameters = session.create_domain_parameters(
                kind, {Attribute.EC_PARAMS: encode_named_curve_parameters(curve)}, local=True
            )
            own = {Attribute.SIGN: sign, Attribute.ALWAYS_AUTHENTICATE: ask_each_time}
            half, _ = parameters.generate_keypair(
                store=True, label=label, id=label.encode(), private_template=own
            )
            if not public:
                half.destroy()
        return uri(token, label)

    def make_secret(self, token: str, label: str) -> str:
        with (
            pkcs11.lib(self.module)
            .get_token(token_label=token)
            .open(rw=True, user_pin=PIN.decode()) as session
        ):
            session.generate_key(KeyType.AES, 256, label=label, store=True)
            assert list(session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY}))
        return uri(token, label)

    def _util(self, *arguments: str) -> None:
        program = find_program("softhsm2-util")
        assert program is not None
        environment = os.environ | {CONFIGURED: str(self.config)}
        subprocess.run(
            [program, *arguments], env=environment, check=True, capture_output=True, timeout=60
        )


def uri(token: str, label: str) -> str:
    return f"pkcs11:token={quote(token)};object={quote(label)}"


@contextmanager
def softhsm(folder: Path) -> Iterator[SoftHsm]:
    """A security module with no token yet, named in the environment while it lasts."""
    hsm = SoftHsm(folder)
    before = {name: os.environ.get(name) for name in (CONFIGURED, MODULE_VARIABLE)}
    os.environ |= {CONFIGURED: str(hsm.config), MODULE_VARIABLE: hsm.module}
    pkcs11.unload(hsm.module)
    try:
        yield hsm
    finally:
        pkcs11.unload(hsm.module)
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
