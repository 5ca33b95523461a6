"""A key behind a command, as a key service's own tool would be: a script that holds it."""

import shlex
import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from skerry.io.signers import public_key, public_pem

SCRIPT = """\
import sys
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key

key = load_pem_private_key({pem!r}, None)
message = sys.stdin.buffer.read()
ecdsa = (ec.ECDSA(hashes.SHA256()),) if isinstance(key, ec.EllipticCurvePrivateKey) else ()
sys.stdout.buffer.write(key.sign(message, *ecdsa))
sys.stdout.flush()
{then}
"""


def command_for(
    folder: Path, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey, then: str = ""
) -> str:
    """Write the script and its public key to a folder, and return the key's name."""
    folder.mkdir(parents=True, exist_ok=True)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    script, public = folder / "sign.py", folder / "service.pub"
    script.write_text(SCRIPT.format(pem=pem, then=then))
    public.write_bytes(public_pem(public_key(key.public_key(), "a test")))
    return f"exec:{shlex.join([sys.executable, str(script)])}?public={public}"
