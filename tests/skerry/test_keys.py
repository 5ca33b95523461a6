"""Keys sign, come back from an encrypted PEM, and refuse the wrong passphrase."""

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from skerry.errors import TrustError
from skerry.keys import Signer


def test_a_key_comes_back_from_its_encrypted_pem() -> None:
    signer = Signer.generate()
    pem = signer.to_pem(b"a passphrase")
    assert b"ENCRYPTED" in pem
    again = Signer.from_pem(pem, b"a passphrase")
    again.public.verify(b"message", signer.sign(b"message"))
    assert again.key_id == signer.key_id


@pytest.mark.parametrize("passphrase", [b"wrong", None])
def test_the_wrong_passphrase_opens_nothing(passphrase: bytes | None) -> None:
    pem = Signer.generate().to_pem(b"right")
    with pytest.raises(TrustError, match="passphrase") as refused:
        Signer.from_pem(pem, passphrase)
    assert refused.value.code == "key_unreadable"


def test_a_key_of_another_kind_is_refused() -> None:
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    with pytest.raises(TrustError) as refused:
        Signer.from_pem(pem, None)
    assert refused.value.code == "key_type"


def test_a_signature_is_over_the_exact_bytes() -> None:
    signer = Signer.generate()
    with pytest.raises(TrustError):
        signer.public.verify(b"message ", signer.sign(b"message"))
