"""The agent's log: lines of JSON in the state directory, bounded, with secrets taken out.

Control and serve have two files each, of at most half a MiB; the older gives way. A disk that is
full costs lines of the log and nothing else. The same lines go to standard error for people, or
for the journal.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from skerry.errors import UsageError

__all__ = ["LEVELS", "JsonFile", "begin_logs", "log_beside", "redacted", "render", "tail"]

LEVELS: Final = ("debug", "info", "warning", "error")
MAX_FILE_BYTES: Final = 1 << 19
MAX_LINES: Final = 10_000
MAX_TEXT: Final = 4_000  # characters of one message
OLDER: Final = ".1"
_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
_PRIORITY: Final = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}

# what gives somebody access: keys and tokens, passwords within addresses
_SECRETS: Final = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(-----END [A-Z ]*-----|\Z)", re.DOTALL), "[key]"),
    (re.compile(r"(?i)\b(authorization|bearer)([:=\s]+)(?:bearer\s+)?\S+"), r"\1\2[secret]"),
    (
        re.compile(
            r"(?i)\b([\w-]*(?:password|passwd|passphrase|secret|token|api[_-]?key))"
            r"(['\"]?\s*[:=]\s*['\"]?)[^\s'\"&,;]+"
        ),
        r"\1\2[secret]",
    ),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@]+@"), r"\1[secret]@"),
    (re.compile(r"\b[A-Za-z0-9_-]{80,}={0,2}"), "[long]"),
)  # fmt: skip


def redacted(text: str) -> str:
    """Return a text without what gives access to something."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class JsonFile(logging.Handler):
    """Appends records as lines of JSON ``{at, level, name, text}``.

    Args:
        file: made with its directory, for the owner alone.
        max_bytes: of the file, before it becomes the older one.
    """

    def __init__(self, file: Path, max_bytes: int = MAX_FILE_BYTES) -> None:
        super().__init__()
        self._file, self._max = file, max_bytes

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; where that cannot be done, go on without."""
        try:
            line = msgspec.json.encode(_entry(record), order="sorted") + b"\n"
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._file.exists() and self._file.stat().st_size + len(line) > self._max:
                self._file.replace(self._file.with_name(self._file.name + OLDER))
            fd = os.open(self._file, _APPEND, 0o600)
            try:
                os.write(fd, line)
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return


class _Lines(logging.Formatter):
    """Lines for standard error: with a priority where they go to the journal."""

    def __init__(self, *, journal: bool) -> None:
        stamp = "" if journal else "%(asctime)s "
        super().__init__(f"{stamp}%(levelname)s %(name)s: %(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = redacted(super().format(record))
        if not self._journal:
            return text
        priority = _PRIORITY.get(record.levelname, 6)
        return "\n".join(f"<{priority}>{line}" for line in text.splitlines())


def begin_logs(file: Path, level: str, *, journal: bool) -> None:
    """Let everything that is logged from now on go to standard error and to the file.

    Args:
        file: of JSON lines.
        level: one of `LEVELS`.
        journal: standard error goes to the journal.
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Lines(journal=journal))
    logging.basicConfig(level=level.upper(), handlers=[stream, JsonFile(file)])


def log_beside(state: Path) -> None:
    """Let what serve logs go to a file of its own too, in a state directory that has a log."""
    folder = state / "logs"
    if folder.is_dir():
        logging.getLogger().addHandler(JsonFile(folder / "serve.jsonl"))


def tail(file: Path, lines: int, level: str = "debug") -> list[dict[str, Any]]:
    """Return the newest entries of at least a level, oldest first, of a log and those beside it.

    Raises:
        UsageError: not so many, or no such level.
    """
    if not 1 <= lines <= MAX_LINES:
        raise UsageError(f"expected 1 to {MAX_LINES} lines, got {lines}")
    if level not in LEVELS:
        raise UsageError(f"expected a level of {', '.join(LEVELS)}, got {level[:40]!r}")
    least = logging.getLevelNamesMapping()[level.upper()]
    names = logging.getLevelNamesMapping()
    found = [
        entry for entry in _entries(file.parent) if names.get(entry["level"].upper(), 0) >= least
    ]
    return sorted(found, key=lambda entry: entry["at"])[-lines:]


def render(entry: dict[str, Any]) -> str:
    """Return an entry as a line for people."""
    at = datetime.fromtimestamp(entry["at"], UTC)
    return f"{at:%Y-%m-%d %H:%M:%S} {entry['level']} {entry['name']}: {entry['text']}"


def _entries(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"*.jsonl{OLDER}")) + sorted(folder.glob("*.jsonl")):
        try:
            data = path.read_bytes()[-2 * MAX_FILE_BYTES :]
        except FileNotFoundError:  # it gave way
            continue
        for line in data.splitlines():
            try:
                entry = msgspec.json.decode(line)
            except (msgspec.DecodeError, ValueError, RecursionError):  # torn, or not ours
                continue
            if isinstance(entry, dict) and _shaped(entry):
                yield entry


def _shaped(entry: dict[str, Any]) -> bool:
    texts = all(isinstance(entry.get(key), str) for key in ("level", "name", "text"))
    return texts and isinstance(entry.get("at"), float)


def _entry(record: logging.LogRecord) -> dict[str, Any]:
    text = record.getMessage()
    if record.exc_info and record.exc_info[0] is not None:
        text += "\n" + logging.Formatter().formatException(record.exc_info)
    return {
        "at": round(record.created, 6),
        "level": record.levelname.lower(),
        "name": record.name,
        "text": redacted(text)[:MAX_TEXT].encode(errors="backslashreplace").decode(),
    }
