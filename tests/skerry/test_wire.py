"""What is said is signed, bounded, addressed, and refused otherwise."""

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skerry import wire
from skerry.errors import FormatError, SkerryError, TrustError
from skerry.keys import PublicKey, Signer

DEVICE, FLEET = Signer.generate(), Signer.generate()
KEYS = {FLEET.key_id: FLEET.public}
HELLO = wire.Hello(agent="0.1.0", desired_version=3, reported_version=4)


def say(signer: Signer = DEVICE, dev: str = "dev-1", body: wire.UpBody = HELLO) -> bytes:
    return wire.seal_up(
        signer, dev=dev, boot="b00t", seq=1, ts=1.0, mono=2.0, type="hello", body=body
    )


def tell(signer: Signer = FLEET, dev: str = "dev-1", exp: float | None = None) -> bytes:
    return wire.seal_down(signer, dev=dev, type="ack", body=wire.Ack(upto={"b00t": 7}), exp=exp)


def test_a_message_comes_back_as_it_was_said() -> None:
    up, body = wire.open_up(say(), DEVICE.public, device="dev-1")
    assert (up.dev, up.boot, up.seq, body) == ("dev-1", "b00t", 1, HELLO)
    down, ack = wire.open_down(tell(), KEYS, device="dev-1", now=0.0)
    assert down.type == "ack"
    assert ack == wire.Ack(upto={"b00t": 7})


def test_any_messagepack_library_reads_a_message() -> None:
    payload, key_id, signature = msgpack.unpackb(say())
    assert (key_id, len(signature)) == (DEVICE.key_id, 64)
    assert msgpack.unpackb(payload)["body"]["agent"] == "0.1.0"


def test_unknown_keys_are_ignored_so_that_either_side_may_be_newer() -> None:
    payload = msgpack.unpackb(msgpack.unpackb(say())[0])
    payload |= {"from_the_future": [1]}
    payload["body"] |= {"also": {"new": True}}
    raw = msgpack.packb(payload)
    data = msgpack.packb([raw, DEVICE.key_id, DEVICE.sign(wire.UP_DOMAIN + raw)])
    assert wire.open_up(data, DEVICE.public, device="dev-1")[1] == HELLO


def test_another_key_another_device_and_another_direction_are_refused() -> None:
    with pytest.raises(TrustError):
        wire.open_up(say(Signer.generate()), DEVICE.public, device="dev-1")
    with pytest.raises(TrustError) as refused:
        wire.open_up(say(), DEVICE.public, device="dev-2")
    assert refused.value.code == "wrong_device"
    raw = msgpack.unpackb(say())[0]
    crossed = msgpack.packb([raw, DEVICE.key_id, DEVICE.sign(wire.DOWN_DOMAIN + raw)])
    with pytest.raises(TrustError):
        wire.open_up(crossed, DEVICE.public, device="dev-1")


def test_a_device_refuses_what_is_not_its_fleets_or_not_for_it() -> None:
    cases = {
        "unknown_key": tell(Signer.generate()),
        "wrong_device": tell(dev="dev-2"),
        "expired": tell(exp=9.0),
    }
    for code, data in cases.items():
        with pytest.raises(TrustError) as refused:
            wire.open_down(data, KEYS, device="dev-1", now=10.0)
        assert refused.value.code == code


def test_only_a_policy_may_be_for_all() -> None:
    policy = wire.seal_down(FLEET, dev="all", type="policy", body=wire.Policy(version=1))
    assert wire.open_down(policy, KEYS, device="dev-1", now=0.0)[0].dev == "all"
    with pytest.raises(TrustError):
        wire.open_down(tell(dev="all"), KEYS, device="dev-1", now=0.0)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_flipped_bit_is_refused(position: int, flip: int) -> None:
    data = bytearray(say())
    data[position % len(data)] ^= flip
    with pytest.raises(SkerryError):
        wire.open_up(bytes(data), DEVICE.public, device="dev-1")


@given(st.binary(max_size=300))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(SkerryError):
        wire.open_up(noise, DEVICE.public, device="dev-1")


@pytest.mark.parametrize(
    "data",
    [
        b"\x91" * 100_000,  # nesting without end
        b"\xdd\xff\xff\xff\xff",  # an array that claims four milliards of items
        b"\xc6\xff\xff\xff\xff",  # four gigabytes of bytes
        bytes(wire.MAX_MESSAGE_BYTES + 1),
    ],
)
def test_hostile_lengths_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        wire.peek_up(data)


def test_a_public_key_of_the_wrong_length_verifies_nothing() -> None:
    with pytest.raises(TrustError):
        wire.open_up(say(), PublicKey(b"short"), device="dev-1")
