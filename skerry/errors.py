"""Every error that Skerry raises on purpose, in one tree.

    SkerryError                exit 1   something failed
    ├── UsageError             exit 2   a wrong argument, recipe key or setting
    ├── NotFoundError          exit 3   the thing named does not exist
    ├── RefusedError           exit 4   understood, and not allowed
    │   └── InvalidTransition           a state machine was asked for an unlisted step
    ├── ConflictError          exit 5   it exists already, or somebody was faster
    ├── GateError              exit 6   a model did not pass its gate
    ├── TrustError             exit 7   a signature, digest or trust check failed
    ├── UnreachableError       exit 8   a broker, fleet or agent did not answer
    └── FormatError            exit 1   bytes that do not have the promised form

A message says what was expected, what came, and what to do. Only a program's
``__main__`` prints or exits.
"""

__all__ = [
    "ConflictError",
    "FormatError",
    "GateError",
    "InvalidTransition",
    "NotFoundError",
    "RefusedError",
    "SkerryError",
    "TrustError",
    "UnreachableError",
    "UsageError",
]


class SkerryError(Exception):
    """Something failed; the message says what was expected, what came, what to do."""

    exit_code = 1


class UsageError(SkerryError):
    """A wrong argument, recipe key or setting."""

    exit_code = 2


class NotFoundError(SkerryError):
    """The thing named does not exist."""

    exit_code = 3


class RefusedError(SkerryError):
    """The request was understood and is not allowed.

    Args:
        message: what was expected, what came, what to do.
        code: a stable lower_snake word that names what was refused.
    """

    exit_code = 4

    def __init__(self, message: str = "", code: str = "refused") -> None:
        super().__init__(message)
        self.code = code


class InvalidTransition(RefusedError):  # noqa: N818 - a noun of its own, as in h11
    """A state machine was asked for a step that its table does not list."""

    def __init__(self, message: str = "", code: str = "invalid_transition") -> None:
        super().__init__(message, code)


class ConflictError(SkerryError):
    """The thing exists already, or somebody else changed it first."""

    exit_code = 5


class GateError(SkerryError):
    """A model did not pass its gate."""

    exit_code = 6


class TrustError(SkerryError):
    """A signature, a digest or one of the trust checks failed.

    Args:
        message: what was expected, what came, what to do.
        code: a stable lower_snake word that names the failed check.
    """

    exit_code = 7

    def __init__(self, message: str, code: str = "signature_invalid") -> None:
        super().__init__(message)
        self.code = code


class UnreachableError(SkerryError):
    """A broker, a fleet or an agent did not answer."""

    exit_code = 8


class FormatError(SkerryError):
    """Bytes that do not have the form that was promised.

    Args:
        message: what was expected, what came, what to do.
        code: a stable lower_snake word that names what is wrong with them.
    """

    def __init__(self, message: str = "", code: str = "format") -> None:
        super().__init__(message)
        self.code = code
