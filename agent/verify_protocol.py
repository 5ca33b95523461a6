"""What the verifier is asked and answers; both sides import it, and it imports little."""

import msgspec

from skerry.trust import CatalogTarget, DirectorTarget, SignedTime

__all__ = ["MAX_ANSWER_BYTES", "MAX_REQUEST_BYTES", "VerifyAnswer", "VerifyRequest"]

MAX_ANSWER_BYTES = 256 << 10
MAX_REQUEST_BYTES = 1 << 20


class VerifyRequest(msgspec.Struct, frozen=True):
    """What is to be verified, against which roots, and where metadata is kept."""

    target: str  # path in the catalog; empty to refresh only
    director: dict[str, bytes]  # metadata file name -> bytes
    catalog_url: str  # of the catalog's metadata
    catalog_root: bytes  # from enrolment
    director_root: bytes
    directory: str  # holds catalog/ and director/
    now: float  # Unix seconds by the device's own clock
    timeout_s: float
    ca_file: str = ""  # of the authorities that an https server's certificate must be signed by
    cert_file: str = ""  # of this device
    key_file: str = ""
    director_url: str = ""  # of the director's roots; empty: only those carried
    signed: list[SignedTime] = []  # what time it is at least, by the fleet's message keys
    root_floor: int = 0  # version of the director's root when that was signed


class VerifyAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the metadata says, or why it is refused.

    With a `code` there is no target, and the rest is what was verified before the refusal.
    `transient` means that it may be otherwise later: no connection, or a disk that is full.
    """

    assigned: DirectorTarget | None = None
    released: CatalogTarget | None = None
    metadata: dict[str, int] = {}  # versions seen
    message_keys: dict[str, bytes] = {}  # raw, by key id, of the latest director root
    until: dict[str, float] = {}  # by repository: when its timestamp expires, Unix seconds
    code: str = ""
    message: str = ""
    transient: bool = False
