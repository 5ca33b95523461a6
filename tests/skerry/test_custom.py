"""What Skerry adds to TUF metadata comes back with its types, or is refused."""

from typing import Any

import msgspec
import pytest

from skerry.custom import (
    MESSAGE_KEYS_FIELD,
    catalog_custom,
    catalog_target,
    director_custom,
    director_target,
    message_keys,
    message_keys_field,
)
from skerry.errors import TrustError
from skerry.keys import Signer
from skerry.trust import CatalogTarget, DirectorTarget, PatchRef, target_path

PATH, HASHES = target_path("acme", "reader", "1.0.0"), {"sha256": "ab" * 32}
RELEASE = CatalogTarget(PATH, 9, HASHES["sha256"], 2, ["any"], "0.1.0", ["sha256:" + "cd" * 32])
PATCH = PatchRef("sha256:" + "1" * 64, "sha256:" + "2" * 64, "sha256:" + "3" * 64, 9)
ORDER = DirectorTarget(PATH, 9, HASHES["sha256"], "dev-1", "reader", "r-1", "a-1")


def test_targets_come_back() -> None:
    assert catalog_target(PATH, 9, HASHES, catalog_custom(RELEASE)) == RELEASE
    assert director_target(PATH, 9, HASHES, director_custom(ORDER)) == ORDER


def test_patches_come_back_and_are_not_there_where_there_are_none() -> None:
    custom = catalog_custom(msgspec.structs.replace(RELEASE, patches=[PATCH] * 16))
    assert custom["patches"][0] == {
        "from": PATCH.old, "to": PATCH.new, "digest": PATCH.digest, "size_bytes": 9,
    }  # fmt: skip
    assert catalog_target(PATH, 9, HASHES, custom).patches == [PATCH] * 16
    assert "patches" not in catalog_custom(RELEASE)


def patch(**change: object) -> dict[str, object]:
    return msgspec.to_builtins(PATCH) | change


def test_fields_of_a_newer_writer_are_ignored() -> None:
    custom = catalog_custom(RELEASE) | {"later": 1}
    assert catalog_target(PATH, 9, HASHES, custom) == RELEASE


@pytest.mark.parametrize(
    "change",
    [
        {"release_counter": 0},
        {"release_counter": "2"},
        {"release_counter": None},
        {"hw_classes": []},
        {"hw_classes": ["any"] * 65},
        {"hw_classes": "any"},
        {"min_agent": "new"},
        {"min_agent": ""},
        {"may_fall_back_to": ["x"] * 65},
        {"patches": [patch()] * 17},
        {"patches": [patch(size_bytes=0)]},
        {"patches": [patch(size_bytes=(1 << 30) + 1)]},
        {"patches": [patch(size_bytes=1.5)]},
        {"patches": [patch(digest="sha256:" + "A" * 64)]},
        {"patches": [patch(**{"from": "1" * 64})]},
        {"patches": [patch(to="../x")]},
        {"patches": [{"digest": PATCH.digest}]},
        {"patches": None},
    ],
)
def test_a_release_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrustError) as refused:
        catalog_target(PATH, 9, HASHES, catalog_custom(RELEASE) | change)
    assert refused.value.code == "custom"


@pytest.mark.parametrize("change", [{"device": "dev/#"}, {"slot": ""}, {"nonce": 1}])
def test_an_assignment_of_another_form_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TrustError):
        director_target(PATH, 9, HASHES, director_custom(ORDER) | change)


@pytest.mark.parametrize("hashes", [{}, {"sha512": "ab" * 64}, {"sha256": "AB" * 32}])
def test_a_target_without_its_sha256_is_refused(hashes: dict[str, str]) -> None:
    with pytest.raises(TrustError):
        catalog_target(PATH, 9, hashes, catalog_custom(RELEASE))
    with pytest.raises(TrustError):
        director_target(PATH, 9, hashes, director_custom(ORDER))


@pytest.mark.parametrize("custom", [None, [], "text", {}])
def test_a_target_without_custom_is_refused(custom: object) -> None:
    for read in (catalog_target, director_target):
        with pytest.raises(TrustError):
            read(PATH, 9, HASHES, custom)


def test_message_keys_come_back_by_their_ids() -> None:
    keys = [Signer.generate().public for _ in range(2)]
    found = message_keys({MESSAGE_KEYS_FIELD: message_keys_field(keys)})
    assert found == {key.key_id: key for key in keys}


@pytest.mark.parametrize(
    "field", [None, {}, {"0" * 16: "ab" * 32}, {"x": "no hex"}, {"x": "abcd"}, ["ab" * 32]]
)
def test_damaged_message_keys_are_refused(field: object) -> None:
    with pytest.raises(TrustError) as refused:
        message_keys({MESSAGE_KEYS_FIELD: field})
    assert refused.value.code == "message_keys"
