"""A record says what was measured, and can be signed by who measured."""

import pytest
from securesystemslib.signer import CryptoSigner

from compiler.build import Built
from compiler.host import isa_flags, this_host, tools
from compiler.record import open_record, seal_record
from skerry.errors import FormatError, TrustError

KEY = CryptoSigner.generate_ecdsa()


def test_a_record_comes_back_signed_or_not(built: Built) -> None:
    assert open_record(seal_record(built.record, None), None) == built.record
    assert open_record(seal_record(built.record, KEY), KEY.public_key) == built.record


def test_a_signature_is_wanted_where_a_key_is_given(built: Built) -> None:
    with pytest.raises(TrustError) as unsigned:
        open_record(seal_record(built.record, None), KEY.public_key)
    assert unsigned.value.code == "unsigned"
    with pytest.raises(TrustError):
        open_record(seal_record(built.record, CryptoSigner.generate_ed25519()), KEY.public_key)


def test_a_changed_record_is_refused(built: Built) -> None:
    data = seal_record(built.record, KEY)
    for changed in (
        data.replace(b'"n":240', b'"n":999'),
        data.replace(b'"signature":"', b'"signature":"!'),
    ):
        assert changed != data
        with pytest.raises(TrustError):
            open_record(changed, KEY.public_key)


def test_other_bytes_are_no_record() -> None:
    with pytest.raises(FormatError):
        open_record(b"{}", None)


@pytest.mark.parametrize(
    ("cpuinfo", "flags"),
    [
        ("flags\t\t: fpu sse2 avx2 avx512f avx512_vnni\n", ["avx2", "avx512", "vnni"]),
        ("flags : avx2 avx_vnni\n", ["avx2", "vnni"]),
        ("flags : avx2 amx_tile amx_int8", ["avx2", "amx"]),
        ("processor : 0\nFeatures\t: fp asimd asimddp\n", ["dotprod"]),
        ("Features : asimddp i8mm", ["dotprod", "i8mm"]),
        ("flags : sse2", []),
        ("", []),
    ],
)
def test_instruction_sets_are_read_from_the_kernels_words(cpuinfo: str, flags: list[str]) -> None:
    assert isa_flags(cpuinfo) == flags


def test_this_machine_has_a_class_and_tools_have_versions() -> None:
    assert this_host().hw_class.startswith("linux-")
    assert tools().onnx.count(".") >= 1
