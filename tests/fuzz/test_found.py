"""What the fuzzer found, each once: bytes that got past the documented errors."""

import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Targets

from agent.config import load_config
from agent.oip import decode_request
from agent.serve_protocol import frames_from_control
from compiler.believe import parse_targets
from fleet import roles
from fleet.api.body import parse_body
from fleet.certificates import requested_key_id
from fleet.config import load_config as load_fleet_config
from skerry.errors import FormatError, SkerryError, TrustError, UsageError
from skerry.keys import Signer
from skerry.tensors import from_raw
from skerry.token import parse_token
from skerry.toml import from_toml

SEEDS = Path(__file__).parent / "seeds"


@pytest.mark.parametrize("datatype", ["Fp32", "a\x00b", ""])
def test_a_tensor_of_no_known_type(datatype: str) -> None:
    with pytest.raises(FormatError, match="expected a tensor of"):
        from_raw(b"", datatype, [0])


def test_a_text_tensor_that_claims_billions_of_elements_makes_no_room_for_them() -> None:
    tracemalloc.start()
    began = time.process_time()
    with pytest.raises(FormatError, match="elements in BYTES"):
        from_raw(b"\x01\0\0\0a", "BYTES", [1 << 33])
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()
    assert time.process_time() - began < 0.5


def test_a_negative_dimension() -> None:
    with pytest.raises(FormatError):
        from_raw(bytes(4), "FP32", [-1, -1])


def test_a_certificate_request_of_an_unknown_version() -> None:
    request = msgspec.json.decode((SEEDS / "enrol_request-version").read_bytes())["csr"]
    with pytest.raises(TrustError) as refused:
        requested_key_id(request)
    assert refused.value.code == "request"


NO_UTF8 = b'{"id":"\xff"}'


def test_text_that_is_not_utf8() -> None:
    frame = b"\x81\xa4type\xa4\xff\xff\xff\xff"
    with pytest.raises(FormatError):
        frames_from_control().feed(len(frame).to_bytes(4, "big") + frame)
    with pytest.raises(UsageError):
        decode_request(NO_UTF8, None)
    with pytest.raises(UsageError):
        parse_body(NO_UTF8, dict[str, Any])


@pytest.mark.parametrize("text", ["sk1.é", "sk1.\udcff", "sk1." + "A" * 100_000, "sk1.AAAAA"])
def test_a_token_with_letters_that_base64_does_not_have(text: str) -> None:
    with pytest.raises(UsageError, match="damaged or cut short"):
        parse_token(text)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000, "a." * 2000 + "a = 1", "a = " + "9" * 5000, "a = nan", "a = [1.0, -inf]", "a = 18446744073709551616",
        "a" * (2 << 20), "a = '\udcff'",
    ],
    ids=["deep", "dotted", "digits", "nan", "inf", "wide", "long", "bytes"],
)  # fmt: skip
def test_settings_that_no_setting_means(tmp_path: Path, text: str) -> None:
    data = text.encode(errors="surrogateescape")
    with pytest.raises(UsageError):
        from_toml(data, "x.toml")
    for name, load in (
        ("a.toml", load_config),
        ("fleet.toml", lambda f: load_fleet_config(f.parent)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(SkerryError):
            load(tmp_path / name)


def test_a_pem_key_with_other_bytes() -> None:
    with pytest.raises(SkerryError):
        Signer.from_pem(b"-----BEGIN PRIVATE KEY-----\n\xff\n-----END PRIVATE KEY-----\n", None)


def test_tuf_metadata_that_parses_and_cannot_be_signed() -> None:
    data = (SEEDS / "tuf_metadata-fraction").read_bytes()
    for read in (parse_targets, lambda data: roles.parse(data, Targets, "a file")):
        with pytest.raises(FormatError, match="signed"):
            read(data)
