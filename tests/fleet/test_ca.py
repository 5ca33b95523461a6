"""The certificate authority gives a name from the claim to a key that is proven to be held."""

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store

from fleet.ca import Authority, issuing_request, make_root, sign_issuing
from fleet.certificates import make_ec_key, same_key
from skerry.errors import TrustError, UsageError
from tests.fakes.trusted import NOW

ROOT_KEY, ISSUING_KEY = make_ec_key(), make_ec_key()
ROOT = make_root(ROOT_KEY, "demo", NOW)
ISSUING = sign_issuing(ROOT_KEY, ROOT, issuing_request(ISSUING_KEY, "demo"), "demo", NOW)
AUTHORITY = Authority(ISSUING_KEY, ISSUING, ROOT)


def request(key: ec.EllipticCurvePrivateKey | None = None, name: str = "somebody-else") -> str:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("fleet.test")]), critical=False)
    )
    signed = builder.sign(key or make_ec_key(), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM).decode()


def issued(device: str = "dev-1") -> x509.Certificate:
    return x509.load_pem_x509_certificates(AUTHORITY.issue(device, request(), NOW).pem.encode())[0]


def test_the_name_is_the_claims_and_nothing_of_the_request_is_taken_over() -> None:
    certificate = issued()
    assert [(a.oid, a.value) for a in certificate.subject] == [(NameOID.COMMON_NAME, "dev-1")]
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca
    with pytest.raises(x509.ExtensionNotFound):
        certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)


def test_it_lasts_thirty_days_at_most_and_is_for_clients() -> None:
    certificate = issued()
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life <= timedelta(days=30)
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


def test_the_issuing_authority_may_issue_no_authority() -> None:
    certificate = x509.load_pem_x509_certificate(ISSUING)
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)


def test_the_chain_holds_to_the_root() -> None:
    pem = AUTHORITY.issue("dev-1", request(), NOW).pem.encode()
    device, issuing = x509.load_pem_x509_certificates(pem)
    device.verify_directly_issued_by(issuing)
    issuing.verify_directly_issued_by(x509.load_pem_x509_certificate(ROOT))


def test_an_independent_path_builder_accepts_the_issuing_chain_for_clients() -> None:
    device, issuing = x509.load_pem_x509_certificates(
        AUTHORITY.issue("dev-1", request(), NOW).pem.encode()
    )
    store = Store([x509.load_pem_x509_certificate(ROOT)])
    verifier = (
        PolicyBuilder()
        .store(store)
        .time(NOW)
        .extension_policies(**_lenient())
        .build_client_verifier()
    )
    assert verifier.verify(device, [issuing]).chain[-1] == x509.load_pem_x509_certificate(ROOT)


def _lenient() -> dict[str, x509.verification.ExtensionPolicy]:
    """Policies of the web, without their wish for alternative names in client certificates."""
    policy = x509.verification.ExtensionPolicy
    return {"ca_policy": policy.webpki_defaults_ca(), "ee_policy": policy.permit_all()}


def test_a_request_for_another_kind_of_key_is_refused() -> None:
    for key in (
        rsa.generate_private_key(65537, 2048),
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
    ):
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "dev-1")])
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        wrong = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
        with pytest.raises(TrustError, match="P-256"):
            AUTHORITY.issue("dev-1", wrong.public_bytes(serialization.Encoding.PEM).decode(), NOW)


def test_a_request_that_does_not_prove_its_key_is_refused() -> None:
    der = bytearray(
        x509.load_pem_x509_csr(request().encode()).public_bytes(serialization.Encoding.DER)
    )
    der[-1] ^= 1
    forged = x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()
    with pytest.raises(TrustError, match="own key"):
        AUTHORITY.issue("dev-1", forged, NOW)


@pytest.mark.parametrize(
    "text", ["", "no request", "-----BEGIN CERTIFICATE REQUEST-----", "x" * 9999]
)
def test_what_is_no_request_is_refused(text: str) -> None:
    with pytest.raises(TrustError, match="request"):
        AUTHORITY.issue("dev-1", text, NOW)


@pytest.mark.parametrize("name", ["dev/#", "+", "dév-1", "x" * 300, "dev-1\x00", "Dev-1"])
def test_a_name_that_is_no_device_id_is_never_certified(name: str) -> None:
    with pytest.raises(UsageError):
        AUTHORITY.issue(name, request(), NOW)


def test_certificates_that_do_not_belong_together_are_refused() -> None:
    stranger = make_ec_key()
    with pytest.raises(TrustError, match="root signed"):
        Authority(ISSUING_KEY, ISSUING, make_root(stranger, "demo", NOW))
    with pytest.raises(TrustError, match="this fleet's key"):
        Authority(stranger, ISSUING, ROOT)


def test_a_request_of_the_same_key_is_recognised() -> None:
    key = make_ec_key()
    certificate = AUTHORITY.issue("dev-1", request(key), NOW).pem
    assert same_key(certificate, request(key))
    assert not same_key(certificate, request())


def test_an_authority_that_has_expired_issues_nothing() -> None:
    end = x509.load_pem_x509_certificate(ISSUING).not_valid_after_utc
    before = end - timedelta(days=3)
    assert AUTHORITY.issue("dev-1", request(), before).expires == end
    assert AUTHORITY.server(["localhost"], before).expires == end
    for issue in (
        lambda: AUTHORITY.issue("dev-1", request(), end),
        lambda: AUTHORITY.server(["localhost"], end),
        lambda: AUTHORITY.service("_fleet", end),
    ):
        with pytest.raises(TrustError, match="expired on 20") as caught:
            issue()
        assert caught.value.code == "authority_expired"


def test_several_roots_are_named_and_the_one_that_issues_comes_first() -> None:
    other = make_root(make_ec_key(), "next", NOW)
    both = Authority(ISSUING_KEY, ISSUING, ROOT + other)
    assert Authority(ISSUING_KEY, ISSUING, other + ROOT).pem == both.pem  # the issuer comes first
    assert both.pem.encode() == ROOT + other
    assert both.fingerprint == AUTHORITY.fingerprint
    with pytest.raises(TrustError, match="root signed"):
        Authority(ISSUING_KEY, ISSUING, other)
    with pytest.raises(TrustError, match="root authority"):
        Authority(ISSUING_KEY, ISSUING, b"")
