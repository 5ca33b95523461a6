"""What a publisher has released: its role in the catalog, and its bins once there are many releases.

    up to 300 releases   acme          names them all
    beyond               acme          names none, and delegates to its bins by the same keys
                         acme_bin-00   to acme_bin-3f: each the releases whose path falls into it

A path falls into a bin by the first bits of its sha256, so that a device which looks for one release
fetches one bin, not the history of its publisher. No publisher's name holds a `_` (`skerry.ids`), so
that nobody can be called like a bin.

Source: TAP 15, succinct hash bin delegations.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key
from tuf.api.metadata import Delegations, Metadata, SuccinctRoles, TargetFile, Targets

from skerry.custom import catalog_target
from skerry.errors import TrustError
from skerry.trust import CatalogTarget

__all__ = ["BIN_BITS", "SPLIT_ABOVE", "Delegation", "Holding", "bin_prefix", "signed_by"]

SPLIT_ABOVE: Final = 300  # releases
BIN_BITS: Final = 6  # 64 bins; decision 0019 has the measurement
MAX_BIN_BITS: Final = 10


@dataclass(frozen=True, slots=True)
class Delegation:
    """By which keys a publisher speaks, and how many of them it takes."""

    keys: Mapping[str, Key]  # by key id
    threshold: int

    @classmethod
    def of(cls, targets: Targets, publisher: str) -> "Delegation":
        """Return the delegation that the catalog's targets hold.

        Raises:
            TrustError: code ``unknown_publisher``.
        """
        try:
            role = targets.get_delegated_role(publisher)
            return cls({keyid: targets.get_key(keyid) for keyid in role.keyids}, role.threshold)
        except ValueError:
            raise TrustError(
                f"nobody has been given the role {publisher}; name it in the key ceremony",
                "unknown_publisher",
            ) from None

    def signed_by(self, metadata: Metadata[Targets]) -> set[str]:
        """Return which of the keys signed the metadata, by key id; each counts once."""
        return signed_by(metadata, self.keys)

    def bins(self, publisher: str) -> Delegations:
        """Return what delegates to a publisher's bins by these keys."""
        succinct = SuccinctRoles(list(self.keys), self.threshold, BIN_BITS, bin_prefix(publisher))
        return Delegations(dict(self.keys), succinct_roles=succinct)

    def is_of_bins(self, delegations: Delegations) -> bool:
        """Tell whether these same keys speak for the bins."""
        bins = delegations.succinct_roles
        return (
            bins is not None
            and set(bins.keyids) == set(self.keys)
            and bins.threshold == self.threshold
            and all(delegations.keys.get(keyid) == key for keyid, key in self.keys.items())
        )


@dataclass(frozen=True)
class Holding:
    """A publisher's metadata as a whole; without roles before its first release.

    Args:
        publisher: whose.
        roles: the publisher's own and its bins', by name.
    """

    publisher: str
    roles: Mapping[str, Metadata[Targets]]

    @property
    def version(self) -> int:
        """The version of the publisher's role, which every release raises by one."""
        return self.roles[self.publisher].signed.version if self.roles else 0

    @cached_property
    def targets(self) -> dict[str, TargetFile]:
        """Every release as TUF states it, by path."""
        every = (metadata.signed.targets for metadata in self.roles.values())
        return {path: target for targets in every for path, target in targets.items()}

    @cached_property
    def releases(self) -> dict[str, CatalogTarget]:
        """Every release, by path.

        Raises:
            TrustError: a target is not as Skerry signs it.
        """
        return {
            path: catalog_target(path, target.length, target.hashes, target.custom)
            for path, target in self.targets.items()
        }

    @property
    def bins(self) -> SuccinctRoles | None:
        """The publisher's bins, None where it has none.

        Raises:
            TrustError: code ``delegation``: it delegates to anything else.
        """
        delegations = self.roles[self.publisher].signed.delegations if self.roles else None
        if delegations is None:
            return None
        bins = delegations.succinct_roles
        if (
            bins is None
            or bins.name_prefix != bin_prefix(self.publisher)
            or bins.bit_length > MAX_BIN_BITS
        ):
            raise TrustError(
                f"expected no delegations by {self.publisher} but to its own bins", "delegation"
            )
        return bins

    def with_roles(self, roles: Mapping[str, Metadata[Targets]]) -> "Holding":
        """Return the holding with roles replaced or added."""
        return Holding(self.publisher, {**self.roles, **roles})

    def check_shape(self, delegation: Delegation) -> None:
        """Check that a device finds each release, and that nobody but the publisher speaks for any.

        Raises:
            TrustError: code ``delegation``, ``bins`` or ``outside_bin``.
        """
        bins = self.bins
        expected = {self.publisher, *(bins.get_roles() if bins else ())}
        if set(self.roles) != expected:
            wrong = min(set(self.roles) ^ expected)
            raise TrustError(f"expected {self.publisher} and its bins: {wrong[:80]}", "bins")
        if bins is None:
            return
        own = self.roles[self.publisher].signed
        assert own.delegations is not None
        if own.targets:
            raise TrustError(f"expected every release of {self.publisher} in a bin", "outside_bin")
        if not delegation.is_of_bins(own.delegations):
            raise TrustError(
                f"expected bins with the {len(delegation.keys)} keys and the threshold "
                f"{delegation.threshold} of {self.publisher}; if they were replaced, sign with --root",
                "bins",
            )
        for name in expected - {self.publisher}:
            role = self.roles[name].signed
            if role.delegations is not None:
                raise TrustError(f"expected no delegations by {name}", "delegation")
            for path in role.targets:
                if bins.get_role_for_target(path) != name:
                    raise TrustError(f"{path[:120]} is not in its bin", "outside_bin")


def bin_prefix(publisher: str) -> str:
    """Return how the names of a publisher's bins begin."""
    return f"{publisher}_bin"


def signed_by(metadata: Metadata[Targets], keys: Mapping[str, Key]) -> set[str]:
    """Return which of the keys signed the metadata, by key id."""
    found = set()
    for keyid, key in keys.items():
        signature = metadata.signatures.get(keyid)
        if signature is None:
            continue
        try:
            key.verify_signature(signature, metadata.signed_bytes)
        except UnverifiedSignatureError:
            continue
        found.add(keyid)
    return found
