"""Records for the outbox, written as a serving process writes them."""

import os
from pathlib import Path

from agent.segments import Header
from agent.spool import Spool
from skerry.canonical import to_msgpack
from skerry.records import Context, Item, Prediction, SketchWindow

CONTEXT = Context("reader", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32")


def writer(root: Path, boot: str = "boot-a", size: int = 4096) -> Spool:
    header = Header(boot, 1, "os-1", 1.0, [CONTEXT], [])
    return Spool(root, header, segment_bytes=size, max_bytes=1 << 20)


def die(spool: Spool) -> None:
    """What the kernel does to a killed process: its lock and its mappings go."""
    os.close(spool._lock)
    if spool._view is not None:
        spool._view.close()
        os.close(spool._fd)


def prediction(number: int, text: str = "") -> Prediction:
    return Prediction(f"id-{number}{text}", 1.0, 0, 1, 0.5, 100, [0.25])


def window() -> SketchWindow:
    return SketchWindow(0, 0.0, 1.0, 3, 0, {})


def write(spool: Spool, *items: Item) -> None:
    for item in items:
        assert spool.append(to_msgpack(item))
