"""The release file keeps metadata byte for byte, and says so where it is none."""

import json

import pytest

from compiler.handover import fetch_release_file
from skerry.errors import FormatError
from skerry.release_file import MAX_FILE_BYTES, ReleaseFile, read_release_file

ROLE = b'{"signatures":[],  "signed":{"z":1,"a":1e2}}'  # neither canonical nor compact
FILE = ReleaseFile("acme", {"acme": ROLE, "acme_bin-0": b"{}"}, {"acme": b"[1]"}, [b"{}"], ROLE)


def test_what_was_written_is_read_byte_for_byte() -> None:
    assert read_release_file(FILE.to_bytes()) == FILE
    assert read_release_file(FILE.to_bytes()).metadata["acme"] == ROLE


def test_a_fleet_gets_only_what_is_signed() -> None:
    assert read_release_file(FILE.for_fleet()) == ReleaseFile("acme", FILE.metadata)


def test_plain_metadata_passes_through_as_it_is() -> None:
    plain = read_release_file(ROLE)
    assert plain == ReleaseFile("", {"": ROLE})
    assert plain.for_fleet() == ROLE


def test_unknown_fields_of_a_later_version_are_passed_over() -> None:
    later = json.loads(FILE.to_bytes()) | {"note": "hello"}
    assert read_release_file(json.dumps(later).encode()).publisher == "acme"


HEAD = {"format": "skerry-release/1", "publisher": "acme"}


@pytest.mark.parametrize(
    "value",
    [
        HEAD,
        HEAD | {"metadata": {}},
        HEAD | {"metadata": {"globex": {}}},
        HEAD | {"metadata": {"acme": {}}, "publisher": ""},
        HEAD | {"metadata": {"acme": {}}, "publisher": 7},
        HEAD | {"metadata": {"acme": {}}, "format": "skerry-release/2"},
        HEAD | {"metadata": {"acme": {}} | {f"acme_bin-{n}": {} for n in range(1025)}},
        HEAD | {"metadata": {"acme": {}}, "roots": [{}] * 1025},
        HEAD | {"metadata": {"acme": {}}, "before": [1]},
        [1],
        "acme",
    ],
)
def test_anything_else_is_refused(value: object) -> None:
    with pytest.raises(FormatError, match="expected a release file"):
        read_release_file(json.dumps(value).encode())


def test_no_more_is_read_than_a_file_may_have() -> None:
    with pytest.raises(FormatError, match="at most"):
        read_release_file(b" " * (MAX_FILE_BYTES + 1))


def test_every_root_travels_however_often_keys_were_changed() -> None:
    def fetch(url: str) -> bytes | None:
        name = url.rpartition("/")[2]
        number = name.removesuffix(".root.json")
        return name.encode() if number.isdecimal() and int(number) <= 201 else None

    assert len(fetch_release_file("acme", "http://fleet/", fetch).roots) == 200
