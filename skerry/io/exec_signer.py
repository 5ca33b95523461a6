"""Keys behind a command, such as a key service's: it gets the bytes to sign and answers a signature.

    exec:COMMAND ARGUMENTS?public=FILE

    stdin        the bytes to sign, as they are; the command hashes them itself
    stdout       the signature, raw: 64 bytes for Ed25519, DER for ECDSA P-256 (SHA-256)
    stderr       for people; its last line is shown where the command fails
    exit code    0, or no signature is taken

No shell is involved. The answer is verified with the public key of FILE before it is used. The
command gets neither our passphrase nor our operator's token.
"""

import os
import selectors
import shlex
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Final

from securesystemslib.signer import Key, SecretsHandler, Signature, Signer, SSlibKey

from skerry.errors import NotFoundError, TrustError, UnreachableError, UsageError
from skerry.io.key_files import checked, read_public

__all__ = ["ExecSigner", "open_exec", "parse_exec"]

SCHEME: Final = "exec"
PUBLIC: Final = "?public="
TIMEOUT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 1024
MAX_COMPLAINT_BYTES: Final = 64 * 1024
SHOWN_CHARS: Final = 200
OURS: Final = ("SKERRY_KEY_PASSPHRASE", "SKERRY_KEY_PIN", "SKERRY_TOKEN")


class ExecSigner(Signer):
    """Signs by running a command; made by `open_exec`."""

    def __init__(self, command: list[str], key: SSlibKey, timeout_s: float = TIMEOUT_S) -> None:
        self._command = command
        self._key = key
        self._timeout_s = timeout_s

    @property
    def public_key(self) -> SSlibKey:
        """The public half, as TUF metadata names it."""
        return self._key

    @classmethod
    def from_priv_key_uri(
        cls, priv_key_uri: str, public_key: Key, secrets_handler: SecretsHandler | None = None
    ) -> "ExecSigner":
        """Open a key by its name, as the base class promises.

        Raises:
            TrustError: it is another key than the one given.
        """
        signer = open_exec(priv_key_uri)
        if signer.public_key.keyid != public_key.keyid:
            raise TrustError(f"expected key {public_key.keyid} at {priv_key_uri}", "key_type")
        return signer

    def sign(self, payload: bytes) -> Signature:
        """Return a signature over exactly these bytes.

        Raises:
            NotFoundError: no such program.
            UsageError: the program cannot be started.
            UnreachableError: it took longer than a minute.
            TrustError: `signer_failed`: it failed, or answered too much; `signature_invalid`: its
                answer is no signature by this key.
        """
        answer = _run(self._command, payload, self._timeout_s)
        return checked(self._key, payload, answer, self._command[0])


def open_exec(spec: str) -> ExecSigner:
    """Return the signer that a command is; it is not run yet.

    Raises:
        UsageError: not `exec:COMMAND?public=FILE`, or quotes that do not end.
        NotFoundError: no such file.
        TrustError: the file is no public key, or of a wrong type.
    """
    command, public = parse_exec(spec)
    return ExecSigner(command, read_public(public))


def parse_exec(spec: str) -> tuple[list[str], Path]:
    """Return the command of a key's name, word by word, and the file of its public key.

    Raises:
        UsageError: not `exec:COMMAND?public=FILE`, or quotes that do not end.
    """
    scheme, _, rest = spec.partition(":")
    before, found, public = rest.rpartition(PUBLIC)
    try:
        command = shlex.split(before)
    except ValueError as error:
        raise UsageError(f"expected a command in {spec[:200]!r}: {error}") from None
    if scheme.lower() != SCHEME or not found or not command or not public or "\0" in spec:
        raise UsageError(
            f"expected exec:COMMAND?public=FILE, with the .pub file of its key; got {spec[:200]!r}"
        )
    return command, Path(public)


def _run(command: list[str], payload: bytes, timeout_s: float) -> bytes:
    name = command[0]
    environment = {key: value for key, value in os.environ.items() if key not in OURS}
    with tempfile.TemporaryFile() as stdin:  # a file, so that no write can wait for the command
        stdin.write(payload)
        stdin.seek(0)
        try:
            child = subprocess.Popen(
                command,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
            )
        except FileNotFoundError:
            raise NotFoundError(f"expected the program {name} on PATH; install it") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"cannot start {name}: {error}") from None
    try:
        answer, complaint = _gather(child, name, time.monotonic() + timeout_s)
    except BaseException:
        child.kill()
        raise
    finally:
        child.wait()
        for pipe in (child.stdout, child.stderr):
            assert pipe is not None
            pipe.close()
    if child.returncode != 0:
        lines = complaint.decode(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
        shown = "".join(c if c.isprintable() else "?" for c in last)[:SHOWN_CHARS]
        raise TrustError(
            f"expected a signature from {name}, got exit code {child.returncode}: {shown}",
            "signer_failed",
        )
    return answer


def _gather(child: "subprocess.Popen[bytes]", name: str, deadline: float) -> tuple[bytes, bytes]:
    """Read both streams to their ends: all of a short answer, and the end of a complaint."""
    assert child.stdout is not None
    assert child.stderr is not None
    read: dict[IO[bytes], bytes] = {child.stdout: b"", child.stderr: b""}
    with selectors.DefaultSelector() as selector:
        for pipe in read:
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left_s = deadline - time.monotonic()
            ready = selector.select(max(0.0, left_s))
            if not ready or left_s <= 0:
                raise _too_slow(name)
            for key, _ in ready:
                pipe = child.stdout if key.fd == child.stdout.fileno() else child.stderr
                data = os.read(key.fd, 4096)
                if not data:
                    selector.unregister(pipe)
                read[pipe] = (read[pipe] + data)[-MAX_COMPLAINT_BYTES:]
            if len(read[child.stdout]) > MAX_ANSWER_BYTES:
                raise TrustError(
                    f"expected a signature of at most {MAX_ANSWER_BYTES} bytes from {name}, got more",
                    "signer_failed",
                )
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise _too_slow(name) from None
    return read[child.stdout], read[child.stderr]


def _too_slow(name: str) -> UnreachableError:
    return UnreachableError(
        f"expected a signature from {name} within a minute, got none; try again"
    )
