"""Identifiers, topics, digests and tokens: one form each, everything else refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry import topics
from skerry.canonical import check_digest, from_json, sha256, to_json
from skerry.errors import FormatError, UsageError
from skerry.ids import ID_PATTERN, check_id, check_version, is_id
from skerry.token import EnrolmentToken, format_token, parse_token

ids = st.from_regex(ID_PATTERN, fullmatch=True).filter(is_id)


@given(ids, st.integers(1, 256), st.sampled_from(topics.UP_KINDS))
def test_an_upward_topic_comes_back(device: str, shards: int, kind: str) -> None:
    topic = topics.up("demo", shards, device, kind)
    parsed = topics.parse_up(topic, shards)
    assert (parsed.fleet, parsed.device, parsed.kind) == ("demo", device, kind)
    assert topic.count("/") <= 6


@pytest.mark.parametrize(
    "topic",
    [
        "skerry/v1/demo/up/zz/dev-1/hello",
        "skerry/v1/demo/up/00/dev-1/secrets",
        "skerry/v2/demo/up/00/dev-1/hello",
        "skerry/v1/demo/up/00/dev+1/hello",
    ],
)
def test_other_topics_are_refused(topic: str) -> None:
    with pytest.raises(FormatError):
        topics.parse_up(topic, 4)


def test_a_device_may_not_speak_on_another_shard() -> None:
    right = topics.shard_of("dev-1", 4)
    wrong = f"{(int(right, 16) + 1) % 4:02x}"
    with pytest.raises(FormatError):
        topics.parse_up(f"skerry/v1/demo/up/{wrong}/dev-1/hello", 4)


@pytest.mark.parametrize(
    "text", ["", "ab", "Dev-1", "dev_1", "dev/1", "-dev", "d" * 64, "dév", "#"]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        check_id(text)


def test_versions_have_three_numbers() -> None:
    assert check_version("1.2.0-rc.1") == "1.2.0-rc.1"
    with pytest.raises(UsageError):
        check_version("1.2")


def test_equal_values_have_equal_json_and_nan_has_none() -> None:
    assert to_json({"b": 1, "a": [1.5]}) == b'{"a":[1.5],"b":1}'
    with pytest.raises(FormatError):
        to_json({"a": float("nan")})
    with pytest.raises(FormatError):
        from_json(b"[" * 100_000, dict)


def test_digests_have_one_form() -> None:
    assert check_digest(sha256(b"x")) == sha256([b"", b"x"])
    with pytest.raises(FormatError):
        check_digest("sha256:../../etc")


def test_a_token_comes_back_and_is_never_repeated_in_an_error() -> None:
    token = EnrolmentToken("dev-1", bytes(32), "http://127.0.0.1:1", "sha256:aa", "sha256:bb")
    text = format_token(token)
    assert parse_token(f"  {text}\n") == token
    for wrong in (text[:-9], "sk1.!!!", "nonsense", text.removeprefix("sk1.")):
        with pytest.raises(UsageError) as refused:
            parse_token(wrong)
        assert wrong not in str(refused.value)
