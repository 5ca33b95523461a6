"""A publisher's bins: whose they can be called, where a release lies, by whose keys they speak."""

from datetime import UTC, datetime

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Targets

from skerry.errors import TrustError
from skerry.holding import BIN_BITS, Delegation, Holding, bin_prefix, signed_by
from skerry.ids import is_id

THEN = datetime(2026, 11, 1, tzinfo=UTC)
ONE, TWO = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ecdsa()
KEYS = {signer.public_key.keyid: signer.public_key for signer in (ONE, TWO)}


def role(delegations: Delegations | None = None) -> Metadata[Targets]:
    return Metadata(Targets(version=1, expires=THEN, delegations=delegations))


def binned(delegation: Delegation) -> Holding:
    own = role(delegation.bins("acme"))
    bins = Holding("acme", {"acme": own}).bins
    assert bins is not None
    return Holding("acme", {"acme": own} | {name: role() for name in bins.get_roles()})


@pytest.mark.parametrize("publisher", ["acme", "acme-bin", "a" * 63])
def test_no_publisher_can_be_called_like_a_bin(publisher: str) -> None:
    holding = Holding(publisher, {publisher: role(Delegation(KEYS, 2).bins(publisher))})
    assert holding.bins is not None
    names = list(holding.bins.get_roles())
    assert len(names) == 1 << BIN_BITS
    assert not any(is_id(name) for name in names)
    assert all(name.startswith(bin_prefix(publisher) + "-") for name in names)


def test_bins_by_the_publishers_own_keys_are_in_shape() -> None:
    delegation = Delegation(KEYS, 2)
    binned(delegation).check_shape(delegation)
    Holding("acme", {"acme": role()}).check_shape(delegation)


@pytest.mark.parametrize(
    "other",
    [Delegation(KEYS, 1), Delegation(dict(list(KEYS.items())[:1]), 1), Delegation({}, 1)],
    ids=["a lower threshold", "one key less", "no keys"],
)
def test_bins_by_other_keys_are_refused(other: Delegation) -> None:
    with pytest.raises(TrustError) as refused:
        binned(other).check_shape(Delegation(KEYS, 2))
    assert refused.value.code == "bins"


def test_a_catalog_names_a_publishers_keys_and_threshold() -> None:
    top = role(
        Delegations(KEYS, {"acme": DelegatedRole("acme", list(KEYS), 2, True, paths=["x"])})
    ).signed
    assert Delegation.of(top, "acme") == Delegation(KEYS, 2)
    with pytest.raises(TrustError) as refused:
        Delegation.of(top, "globex")
    assert refused.value.code == "unknown_publisher"


def test_who_signed_is_told_by_signatures_that_verify() -> None:
    metadata = role()
    metadata.sign(ONE)
    metadata.sign(TWO, append=True)
    assert signed_by(metadata, KEYS) == set(KEYS)
    metadata.signed.version = 2
    assert signed_by(metadata, KEYS) == set()
    metadata.sign(ONE)
    assert signed_by(metadata, KEYS) == {ONE.public_key.keyid}
