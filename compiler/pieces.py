"""The pieces of a SentencePiece model: its protobuf, as far as it is needed.

Source: sentencepiece_model.proto (ModelProto.pieces is field 1, each a message whose field 1
is the text); protobuf's encoding guide.
"""

from skerry.errors import UsageError

__all__ = ["read_pieces"]


def read_pieces(data: bytes, where: str) -> dict[str, int]:
    """Return piece -> number.

    Args:
        data: of a `*.model` file.
        where: its name, for messages.

    Raises:
        UsageError: it is no such file.
    """
    try:
        pieces = [content for field, content in _fields(data) if field == 1]
        texts = [next(text for field, text in _fields(piece) if field == 1) for piece in pieces]
        found = {text.decode(): number for number, text in enumerate(texts)}
    except (ValueError, StopIteration):
        found = {}
    if not found:
        raise UsageError(f"{where}: expected a SentencePiece model, got another file")
    return found


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """Return number and content of every field; numbers are returned as no content."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire, end = tag & 7, at
        if wire == 0:
            _, end = _varint(data, at)
            at = end
        elif wire == 2:
            length, at = _varint(data, at)
            end = at + length
        elif wire in (1, 5):
            end = at + (8 if wire == 1 else 4)
        else:
            raise ValueError(wire)
        if end > len(data):
            raise ValueError(end)
        found.append((tag >> 3, data[at:end] if wire == 2 else b""))
        at = end
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError(at)
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(at)
