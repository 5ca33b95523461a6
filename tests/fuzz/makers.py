"""Damage below the surface: to what the bytes say, sealed and packed again."""

import base64
import io
import json
import lzma
import tarfile
from random import Random

import msgpack

from skerry.bundle import write_bundle
from skerry.canonical import sha256
from skerry.delta import HEAD_BYTES, filters
from skerry.errors import FormatError
from skerry.packing import pack, unpack
from tests.fuzz.good import LAYERS, MANIFEST
from tests.fuzz.mutate import damage_bytes, damage_value


def json_tree(rng: Random, data: bytes) -> bytes:
    """Spoil one place of what the JSON says."""
    try:
        value = json.loads(data)
        return json.dumps(damage_value(rng, value), default=_text).encode("utf-8", "replace")
    except (ValueError, TypeError, RecursionError):
        return damage_bytes(rng, data, [data], longest=1 << 16)


def msgpack_tree(rng: Random, data: bytes) -> bytes:
    """Spoil one place of what the MessagePack says."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
        return bytes(msgpack.packb(damage_value(rng, value), default=str))
    except (ValueError, TypeError, OverflowError, RecursionError, msgpack.UnpackException):
        return damage_bytes(rng, data, [data], longest=1 << 16)


def spoilt_message(rng: Random, data: bytes) -> bytes:
    """Spoil the payload of a message, or its body, and seal it again."""
    try:
        payload, key_id, signature = msgpack.unpackb(data, strict_map_key=False)
        if rng.random() < 0.2:
            payload = damage_bytes(rng, payload, [data], longest=1 << 16)
        elif rng.random() < 0.6:
            payload = _spoilt_batch(rng, payload)
        else:
            payload = msgpack_tree(rng, payload)
        return bytes(msgpack.packb([payload, key_id, signature]))
    except (ValueError, TypeError, msgpack.UnpackException):
        return msgpack_tree(rng, data)


def _spoilt_batch(rng: Random, payload: bytes) -> bytes:
    """Spoil what is packed in the payload of telemetry, as a device with its key could."""
    up = msgpack.unpackb(payload, strict_map_key=False)
    if not isinstance(up, dict) or not isinstance(up.get("body"), bytes):
        return msgpack_tree(rng, payload)
    try:
        up["body"] = pack(msgpack_tree(rng, unpack(up["body"], limit=1 << 17)))
    except FormatError:
        return msgpack_tree(rng, payload)
    return bytes(msgpack.packb(up))


def spoilt_bundle(rng: Random, data: bytes) -> bytes:
    """Spoil one file of a bundle and pack it again, or spoil a header and mend its checksum."""
    if rng.random() < 0.4:
        spoilt = bytearray(data)
        start = 512 * int(rng.random() * (len(data) // 512))
        header = bytearray(
            damage_bytes(rng, bytes(spoilt[start : start + 512]), [data], longest=512)
        )
        header += bytes(512 - len(header))
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        spoilt[start : start + 512] = header
        return bytes(spoilt)
    if rng.random() < 0.5:
        return rebuilt(json_tree(rng, MANIFEST))
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as tar:
            files = [(m, tar.extractfile(m).read()) for m in tar if m.isreg()]  # type: ignore[union-attr]
    except (tarfile.TarError, OSError, ValueError):
        return data
    out = io.BytesIO()
    chosen = int(rng.random() * max(1, len(files)))
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (info, content) in enumerate(files):
            if number == chosen:
                content = json_tree(rng, content)
                if info.name.startswith("blobs/"):
                    info.name = "blobs/sha256/" + sha256(content)[7:]
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def rebuilt(config: bytes) -> bytes:
    """A bundle whose every digest is right, around any manifest."""
    out = io.BytesIO()
    try:
        write_bundle(out, config, LAYERS)
    except FormatError:
        return config
    return out.getvalue()


def spoilt_patch(rng: Random, data: bytes) -> bytes:
    """Damage the instructions of a patch, or its head, and compress them again."""
    head, body = data[:HEAD_BYTES], data[HEAD_BYTES:]
    try:
        plain = lzma.decompress(body, lzma.FORMAT_RAW, filters=filters(16))
    except (lzma.LZMAError, EOFError):
        plain = body
    if rng.random() < 0.2:
        head = damage_bytes(rng, head, [data], longest=HEAD_BYTES)
    plain = damage_bytes(rng, plain, [plain, data], longest=1 << 14)
    return head + lzma.compress(plain, lzma.FORMAT_RAW, filters=filters(16))


def spoilt_token(rng: Random, data: bytes) -> bytes:
    body = data.decode("latin-1").removeprefix("sk1.")
    try:
        raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
    except ValueError:
        raw = data
    raw = (
        msgpack_tree(rng, raw) if rng.random() < 0.5 else damage_bytes(rng, raw, [raw], longest=999)
    )
    return b"sk1." + base64.urlsafe_b64encode(raw).rstrip(b"=")


def spoilt_pem(rng: Random, data: bytes) -> bytes:
    """Damage what a PEM holds, and put it into its lines again."""
    lines = data.split(b"\n")
    try:
        raw = base64.b64decode(b"".join(lines[1:-2]))
    except ValueError:
        raw = data
    raw = damage_bytes(rng, raw, [raw], longest=999)
    label = rng.choice(
        (b"PUBLIC KEY", b"PUBLIC KEY", b"PUBLIC KEY", b"EC PUBLIC KEY", b"RSA PUBLIC KEY")
    )
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label, base64.encodebytes(raw), label)


def spoilt_change(rng: Random, data: bytes) -> bytes:
    """Damage one of the documents in a change of keys, and put it into its base64 again."""
    try:
        change = json.loads(data)
        documents = change[rng.choice(("standing", "wanted"))]
        name = rng.choice(sorted(documents))
        documents[name] = base64.b64encode(
            json_tree(rng, base64.b64decode(documents[name]))
        ).decode()
    except (ValueError, TypeError, KeyError, IndexError):
        return json_tree(rng, data)
    return json.dumps(change).encode()


def spoilt_frame(rng: Random, data: bytes) -> bytes:
    body = msgpack_tree(rng, data[4:])
    return len(body).to_bytes(4, "big") + body


def _text(value: object) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
