"""The URI of a key on a token is read as RFC 7512 has it, and holds no PIN."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry.errors import UsageError
from skerry.pkcs11_uri import KeyUri, parse_key_uri


def test_the_usual_form() -> None:
    assert parse_key_uri("pkcs11:token=acme;object=release") == KeyUri("acme", object="release")


def test_every_attribute_and_the_module() -> None:
    uri = parse_key_uri(
        "pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=5ab8c1f2d0351d06;"
        "token=The%20Software%20PKCS%2311%20Softtoken;id=%00%ff;object=my%2Dkey;type=private"
        "?module-path=/usr/lib/a%26b.so"
    )
    assert uri == KeyUri(
        token="The Software PKCS#11 Softtoken",
        serial="5ab8c1f2d0351d06",
        manufacturer="SoftHSM project",
        model="SoftHSM v2",
        object="my-key",
        id=b"\x00\xff",
        module_path="/usr/lib/a&b.so",
    )


def test_the_scheme_in_capitals_and_empty_parts_are_no_fault() -> None:
    assert parse_key_uri("PKCS11:;id=ab;?&") == KeyUri(id=b"ab")


@pytest.mark.parametrize("name", ["pin-value", "pin-source"])
@pytest.mark.parametrize("separator", [";", "?"])
def test_a_pin_in_it_is_refused_and_not_repeated(name: str, separator: str) -> None:
    with pytest.raises(UsageError, match="asked for") as refused:
        parse_key_uri(f"pkcs11:object=release{separator}{name}=12345678")
    assert "12345678" not in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "", "pkcs11", "hsm:2", "pkcs11:", "pkcs11:token=acme", "pkcs11:object", "pkcs11:object=",
        "pkcs11:object=a;object=b", "pkcs11:object=%", "pkcs11:object=%4", "pkcs11:object=%zz",
        "pkcs11:object=%ff", "pkcs11:object=a%00b", "pkcs11:object=a\nb", "pkcs11:object=a\0",
        "pkcs11:object=a;type=cert", "pkcs11:object=a;type=%ff", "pkcs11:object=a;slot-id=3",
        "pkcs11:object=a;module-path=/x.so", "pkcs11:object=a?object=b", "pkcs11:object=a?module-name=x",
        "pkcs11:object=" + "a" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_such_uri_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_key_uri(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for uri in (text, "pkcs11:" + text, "pkcs11:object=a;" + text):
        try:
            parse_key_uri(uri)
        except UsageError:
            continue


@given(st.binary(min_size=1, max_size=20))
def test_any_id_can_be_named(identity: bytes) -> None:
    text = "".join(f"%{byte:02x}" for byte in identity)
    assert parse_key_uri(f"pkcs11:id={text}").id == identity
