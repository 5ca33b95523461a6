"""Metadata of others is read whole or refused: also what python-tuf reads over."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, SuccinctRoles, Targets

from fleet.roles import parse, sign, tuf_key
from skerry.errors import FormatError
from skerry.keys import Signer

SIGNER = Signer.generate()
KEY = tuf_key(SIGNER.public)


def root() -> dict[str, Any]:
    made = Root()
    made.add_key(KEY, "root")
    return dict(json.loads(sign(made, [SIGNER])))


def targets(*, bins: bool = False) -> dict[str, Any]:
    role = DelegatedRole("acme", [KEY.keyid], 1, True, paths=["models/acme/*"])
    some = Delegations({KEY.keyid: KEY}, {"acme": role})
    many = Delegations({KEY.keyid: KEY}, succinct_roles=SuccinctRoles([KEY.keyid], 1, 1, "bin"))
    return dict(json.loads(sign(Targets(delegations=many if bins else some), [SIGNER])))


CASES: list[tuple[type[Root] | type[Targets], dict[str, Any], Callable[[dict[str, Any]], Any]]] = [
    (Root, root(), lambda signed: signed["roles"]["root"]),
    (Targets, targets(), lambda signed: signed["delegations"]["roles"][0]),
    (Targets, targets(bins=True), lambda signed: signed["delegations"]["succinct_roles"]),
]


@pytest.mark.parametrize("keyid", ["ab" * 32, "", 7, None, 1.5, True])
@pytest.mark.parametrize(("kind", "good", "role_of"), CASES)
def test_a_key_that_is_named_and_not_there_is_refused(
    kind: type[Root] | type[Targets],
    good: dict[str, Any],
    role_of: Callable[[dict[str, Any]], Any],
    keyid: object,
) -> None:
    parse(json.dumps(good).encode(), kind, "a file")
    spoilt = json.loads(json.dumps(good))
    role_of(spoilt["signed"])["keyids"].append(keyid)
    with pytest.raises(FormatError):
        parse(json.dumps(spoilt).encode(), kind, "a file")


@pytest.mark.parametrize("name", [7, None, True])
def test_a_role_whose_name_is_no_text_is_refused(name: object) -> None:
    spoilt = targets()
    spoilt["signed"]["delegations"]["roles"][0]["name"] = name
    with pytest.raises(FormatError):
        parse(json.dumps(spoilt).encode(), Targets, "a file")


def test_python_tuf_reads_over_it() -> None:
    """If this fails, the check of ours is needed no more."""
    spoilt = root()
    spoilt["signed"]["roles"]["root"]["keyids"].append("ab" * 32)
    assert Metadata[Root].from_bytes(json.dumps(spoilt).encode())
