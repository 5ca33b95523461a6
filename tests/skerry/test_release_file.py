"""A release file comes back as it was written, byte for byte in what is signed."""

import pytest

from skerry.release_file import ReleaseFile, read_release_file


@pytest.mark.parametrize("targets", [None, b'{"signed": {"a":1},\n "signatures":[]}'])
def test_it_comes_back_as_it_was_written(targets: bytes | None) -> None:
    file = ReleaseFile("acme", {"acme": b'{"b": 1, "a":2}'}, {"acme": b"{}"}, [b'{"r":1}'], targets)
    assert read_release_file(file.to_bytes()) == file
