"""Releases without end, each with a digest of its own, and a fetcher that needs no network."""

import io
import random
from functools import cache
from typing import Any, Final

import msgspec

from agent.download import Fetcher
from agent.facts import Verified
from skerry.bundle import oci_manifest
from skerry.canonical import sha256, to_json
from skerry.trust import CatalogTarget, DirectorTarget
from skerry.wire import Probation, SlotDesired
from tests.fakes.manifests import tiny_manifest

SLOT: Final = "reader"
DEVICE: Final = "cam-1"
MODEL_BYTES: Final = 24 << 10
CHUNK: Final = 4 << 10
BAD_EVERY: Final = 4  # each fourth release fails its probation
PROBATION: Final = Probation(min_answered=4, min_seconds=0.0, timeout_s=60.0)


class Goods(msgspec.Struct, frozen=True):
    """One release: what the device fetches, by digest."""

    counter: int
    oci: bytes
    config: bytes
    model: bytes
    layers: dict[str, bytes]

    @property
    def bundle(self) -> str:
        return sha256(self.oci)

    @property
    def target(self) -> str:
        return f"models/acme/reader@1.{self.counter}.0"

    @property
    def is_bad(self) -> bool:
        return self.counter % BAD_EVERY == 0


@cache
def goods(counter: int) -> Goods:
    model = random.Random(counter).randbytes(MODEL_BYTES)
    layers = {
        "model.onnx": model,
        "golden.msgpack": b"golden",
        "baseline.msgpack": b"baseline",
        "evaluation.json": b"{}",
        "card.md": b"a card",
    }
    config = to_json(tiny_manifest(layers, version=f"1.{counter}.0"))
    return Goods(counter, oci_manifest(config, layers), config, model, layers)


@cache
def models(upto: int) -> frozenset[str]:
    """Digests of every model that may ever answer."""
    return frozenset(sha256(goods(counter).model) for counter in range(1, upto + 1))


def want(counter: int) -> SlotDesired:
    return SlotDesired(
        f"a-{counter}", "rollout-1", goods(counter).target, goods(counter).bundle,
        probation=PROBATION, deadline_s=600.0,
    )  # fmt: skip


def verified(counter: int) -> Verified:
    ware, id = goods(counter), f"a-{counter}"
    hex, length = ware.bundle.removeprefix("sha256:"), len(ware.oci)
    assigned = DirectorTarget(ware.target, length, hex, DEVICE, SLOT, "rollout-1", id)
    released = CatalogTarget(ware.target, length, hex, counter, ["any"], "0.1.0", [])
    return Verified(SLOT, id, assigned, released, {"director/timestamp": counter})


class ShopFetcher(Fetcher):
    """The agent's fetcher, whose connections are bytes in memory."""

    def __init__(self, ware: Goods) -> None:
        super().__init__("http://shop", timeout_s=1.0)
        self._ware = ware

    def _open(self, path: str, offset: int = 0, headers: Any = None) -> "Body":
        digest = path.rsplit("/", 1)[-1]
        ware = self._ware
        found = {sha256(data): data for data in (ware.oci, ware.config, *ware.layers.values())}
        return Body(found[digest][offset:], 206 if offset else 200)


class Body(io.BytesIO):
    """An answer that comes in small pieces."""

    def __init__(self, data: bytes, status: int) -> None:
        super().__init__(data)
        self.status = status

    def read1(self, size: int | None = -1) -> bytes:
        return super().read1(CHUNK)
