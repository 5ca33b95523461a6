"""Tells a device's new messages from repeated ones, and one machine from two; pure.

A device speaks in one process at a time. Each process has a `boot`, new and random, and numbers
what it signs. The fleet hands out marks, random and in an order that it alone knows, in its acks;
a process repeats the latest mark that it has heard in what it says next. So a message with a mark
was said after the mark was given, whatever the clocks say and whoever carries the messages.

The rules, for all but telemetry, which is numbered by others and counted once by its cursor:

1. A boot never heard of is new, and is the present one from now on: its message is `FRESH`.
2. Of the present boot, a message above the highest number heard is `FRESH`, any other `REPEATED`.
3. Of another boot that is known, a message not above its highest number is `REPEATED`. One above is
   `FRESH`, and the boot is present again, if its mark was given after the present boot was first
   heard: then the present boot was an old one that the broker had kept. Else it is `LATE`.
4. It is a `FORK` if two boots have each repeated a mark that was given after the other was first
   heard, if one number was signed with two contents, or if a message repeats a mark that was given
   after a higher number of its boot was heard. No single process, and no two of which one ended
   before the other began, can have signed such messages, in whatever order they are delivered: no
   replay, delay or reordering makes one.

A boot that was taken for the present one, until another showed that it is (rule 3), is counted as a
stranger: the broker has held its messages back, or somebody has the key and never repeats a mark.

Bounded: eight boots are known with their numbers, a thousand by a digest only (all that they say is
`REPEATED`), and sixteen marks. A boot beyond these counts as new, once: it can feign a sign of
life, and no fork.
"""

import hashlib
from enum import Enum
from typing import Final

import msgspec

__all__ = ["Heard", "Said", "Verdict", "Voice", "hear", "start_over"]

MAX_BOOTS: Final = 8
MAX_FORMER: Final = 1024
MAX_MARKS: Final = 16
MAX_CONTENTS: Final = 16
FORMER_BYTES: Final = 8


class Verdict(Enum):
    """What a message is to what was heard before it."""

    FRESH = "fresh"
    REPEATED = "repeated"
    LATE = "late"
    FORK = "fork"


class Said(msgspec.Struct, frozen=True):
    """What of a signed message tells when it was said."""

    boot: str
    seq: int
    content: bytes  # digest of all that was signed
    mark: str = ""  # that it repeats
    is_hello: bool = False


class Heard(msgspec.Struct, frozen=True, array_like=True):
    """What was heard of one boot; marks and first hearings are counted in one order."""

    boot: str
    first: int  # when it was first heard
    proven: int = 0  # the latest mark that it repeated
    seq: int = 0  # the highest number heard
    seq_at: int = 0  # the latest mark that had been given by then
    contents: tuple[tuple[int, bytes], ...] = ()  # of the latest numbers


class Voice(msgspec.Struct, frozen=True, array_like=True):
    """What was heard of one device."""

    count: int = 0  # of the order
    present: str = ""  # boot
    boots: tuple[Heard, ...] = ()
    former: bytes = b""  # digests of earlier boots, the latest last
    marks: tuple[tuple[str, int], ...] = ()
    fork: str = ""  # why there are two machines, empty where there is one
    strangers: int = 0  # boots that were taken for the present one, and were not

    @property
    def mark(self) -> str:
        """The latest mark given."""
        return self.marks[-1][0] if self.marks else ""


def hear(voice: Voice, said: Said, mark: str) -> tuple[Voice, Verdict]:
    """Return what is known after a message, and what the message is.

    Args:
        voice: what was known.
        said: the message; its signature is the device's.
        mark: a new random one, given if the message is a hello to answer or of a new boot.
    """
    if voice.fork:
        return voice, Verdict.FORK
    known = next((heard for heard in voice.boots if heard.boot == said.boot), None)
    repeated = next((at for name, at in voice.marks if name == said.mark), 0)
    if known is None:
        if _digest(said.boot) in _former(voice):
            return voice, Verdict.REPEATED
        known = Heard(said.boot, first=voice.count + 1)
        known = _said(known, said, repeated, voice)
        return _give(_put(voice, known, present=True), mark), Verdict.FRESH
    contents = dict(known.contents)
    if contents.get(said.seq, said.content) != said.content:
        return _fork(voice, f"two messages are signed as number {said.seq} of boot {known.boot}")
    if said.seq <= known.seq:
        if said.seq not in contents and repeated > known.seq_at:
            what = f"number {said.seq} of boot {known.boot} was said after number {known.seq}"
            return _fork(voice, what)
        return voice, Verdict.REPEATED
    rival = next((heard for heard in voice.boots if heard.boot == voice.present), None)
    if rival is None:  # after a fork was looked at: whoever speaks first is present
        known = msgspec.structs.replace(known, first=voice.count + 1)
    known = _said(known, said, repeated, voice)
    for other in voice.boots:
        if other.boot != known.boot and known.proven >= other.first and other.proven >= known.first:
            what = f"boots {other.boot} and {known.boot} speak in turn"
            return _fork(_put(voice, known), what)
    present = rival is None or rival.boot == known.boot or known.proven >= rival.first
    if present and rival is not None and rival.boot != known.boot:
        voice = msgspec.structs.replace(voice, strangers=voice.strangers + 1)
    voice = _put(voice, known, present=present)
    if said.is_hello:
        voice = _give(voice, mark)
    return voice, Verdict.FRESH if present else Verdict.LATE


def start_over(voice: Voice) -> Voice:
    """Return what is known once an operator has looked at a fork: boots and numbers only."""
    boots = tuple(msgspec.structs.replace(heard, proven=0) for heard in voice.boots)
    return Voice(voice.count + 1, boots=boots, former=voice.former, strangers=voice.strangers)


def _said(known: Heard, said: Said, repeated: int, voice: Voice) -> Heard:
    return msgspec.structs.replace(
        known,
        proven=max(known.proven, repeated),
        seq=said.seq,
        seq_at=voice.count,
        contents=(*known.contents, (said.seq, said.content))[-MAX_CONTENTS:],
    )


def _put(voice: Voice, heard: Heard, *, present: bool = False) -> Voice:
    name = heard.boot if present else voice.present
    boots = [other for other in voice.boots if other.boot != heard.boot]
    former = voice.former
    if len(boots) >= MAX_BOOTS:
        oldest = min((b for b in boots if b.boot != name), key=lambda b: b.first)
        boots.remove(oldest)
        former = (former + _digest(oldest.boot))[-MAX_FORMER * FORMER_BYTES :]
    return msgspec.structs.replace(
        voice,
        count=max(voice.count, heard.first),
        present=name,
        boots=(*boots, heard),
        former=former,
    )


def _give(voice: Voice, mark: str) -> Voice:
    count = voice.count + 1
    return msgspec.structs.replace(
        voice, count=count, marks=(*voice.marks, (mark, count))[-MAX_MARKS:]
    )


def _fork(voice: Voice, why: str) -> tuple[Voice, Verdict]:
    return msgspec.structs.replace(voice, fork=why), Verdict.FORK


def _former(voice: Voice) -> set[bytes]:
    held = voice.former
    return {held[at : at + FORMER_BYTES] for at in range(0, len(held), FORMER_BYTES)}


def _digest(boot: str) -> bytes:
    return hashlib.sha256(boot.encode()).digest()[:FORMER_BYTES]
