"""Good inputs of every parser: what damage is done to."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from onnx import helper, numpy_helper
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Delegations, Root, SuccinctRoles, TargetFile, Targets

from agent.serve_protocol import (
    Accept,
    Drain,
    FromServe,
    Ready,
    Settings,
    SlotStats,
    Stats,
    ToServe,
)
from compiler.patch import make_patch
from fleet import change, offline, roles
from fleet.keystore import ONLINE
from skerry import wire
from skerry.canonical import to_json, to_msgpack
from skerry.counting import count_numeric
from skerry.enrolment import EnrolAnswer, EnrolRequest
from skerry.feedback import ErrorSketch, error_spec
from skerry.io.signers import public_key, public_pem
from skerry.keys import PublicKey, Signer
from skerry.manifest import (
    Golden,
    GoldenTensor,
)
from skerry.profile import Inventory
from skerry.records import Aside, Errors, RawInput
from skerry.release_file import ReleaseFile
from skerry.sketch import int_to_big
from skerry.token import EnrolmentToken, format_token
from skerry.trials import ShadowReport, Trial
from tests.fakes.manifests import tiny_manifest
from tests.fakes.models import graph, linear
from tests.fakes.releases import BASELINE

SEEDS = Path(__file__).parent / "seeds"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "digits"
DEVICE = "device-1"
LAYERS = {
    name: b"content of " + name.encode()
    for name in ("model.onnx", "golden.msgpack", "baseline.msgpack", "evaluation.json", "card.md")
}
MANIFEST = to_json(tiny_manifest(LAYERS))


class AnyKey:
    """A key that every signature is right for: the fuzzer looks behind the signature."""

    key_id = "0" * 16
    raw = bytes(32)

    def verify(self, message: bytes, signature: bytes) -> None:
        pass

    def sign(self, message: bytes) -> bytes:
        return bytes(64)


ANY_KEY: Any = AnyKey()


def sealed_up(kind: Any, body: Any) -> bytes:
    return wire.seal_up(
        ANY_KEY, dev=DEVICE, boot="b00t", seq=1, ts=1.0, mono=2.0, type=kind, body=body
    )


def aside() -> Aside:
    return Aside([RawInput("row", "FP32", [1, 2], b"\x00" * 8)], 12, [0], [1])


def telemetry() -> wire.Batch:
    columns = {name: column.counts for name, column in BASELINE.columns.items()}
    return wire.Batch(
        1,
        [wire.Context("camera", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")],
        [
            wire.Prediction("r-1", 1.0, 0, 3, 0.75, 120, [0.5, 0.25]),
            wire.Prediction("r-2", 1.0, 0, 3, 0.75, 120, [0.5, 0.25], aside()),
            wire.Skip(7),
            wire.SketchWindow(0, 60.0, 60.0, 1000, 0, columns, {"b00t": (1, 2)}),
            wire.Loss("b00t-0", 12, "power"),
            errors(),
        ],
    )


def errors() -> Errors:
    context = wire.Context("camera", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
    counts = count_numeric([0.5, -2.0], error_spec(8.0, 100))
    values = ErrorSketch(
        1, 60.0, 60.0, 2, errors=counts, abs_sum=int_to_big(250), sq_sum=int_to_big(42_500),
        span=8.0, scale=100,
    )  # fmt: skip
    classes = ErrorSketch(0, 60.0, 60.0, 5, 3, [0, 0, 1, 0, 1, 2, 1, 1, 2])
    return Errors([context, context], [classes, values], {"b00t": (1, 9)})


def feedback() -> tuple[bytes, ...]:
    return (
        b'{"id":"a","label":1}',
        b'{"id":"b","label":["yes",null,0]}',
        b'{"feedback":[{"id":"a","label":1.5},{"id":"b#1","label":true}]}',
    )


def reported() -> wire.Reported:
    release = wire.ReleaseRef("reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu", 1.0)
    report = wire.AssignmentReport(
        "a-0001", "camera", "committed", [wire.Step("downloading", 1.0), wire.Step("committed", 2.0)],
        variant="fp32-cpu", live=wire.LiveStats(30, 0, 100.0, 200.0, 3.0),
        trials=[Trial("fp32-cpu", rows=64, run_us=90.0)], shadow=ShadowReport(10, 9, verdict="agrees"),
    )  # fmt: skip
    inventory = Inventory(agent="0.1.0", platform="linux-x86_64", providers=["CPU"], isa=["avx2"])
    return wire.Reported(4, {"camera": release}, [report], inventory, 3)


MESSAGE_KEY = PublicKey(bytes(32))
ROOT_FILE = json.dumps({"signed": {"_type": "root", "version": 1,
    "x-skerry-message-keys": {MESSAGE_KEY.key_id: MESSAGE_KEY.raw.hex()}}}).encode()  # fmt: skip
TARGET = "models/acme/reader@1.0.0"


def downs() -> tuple[bytes, ...]:
    slot = wire.SlotDesired("a-0001", "r-0001", TARGET, "sha256:" + "0" * 64)
    bodies: tuple[tuple[Any, Any], ...] = (
        ("desired", wire.Desired({"camera": slot}, {"1.root.json": ROOT_FILE})),
        ("ack", wire.Ack({"b00t": 7}, 4, ["c-1"])),
        ("cmd", wire.Cmd("c-1", "rollback", {"slot": "camera"})),
        ("policy", wire.Policy(2, records="sampled", sample_rate=0.5)),
    )
    return tuple(
        wire.seal_down(
            ANY_KEY, dev="all" if kind == "policy" else DEVICE, type=kind, body=body, version=2
        )
        for kind, body in bodies
    )


def golden() -> bytes:
    def tensor(name: str) -> GoldenTensor:
        return GoldenTensor(name, "FP32", [2, 2], bytes(16))

    words = GoldenTensor("t", "BYTES", [2], b"\x01\0\0\0a\x02\0\0\0bc")
    return to_msgpack(Golden([tensor("x"), words], [tensor("y")], 0.01, 1e-5))


def _branches() -> bytes:
    """A model with graphs in graphs, a constant in each."""
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=numpy_helper.from_array(np.eye(2), "k"))],
        "inner", [], [helper.make_tensor_value_info("o", 11, [2, 2])],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    return bytes(graph([node], {"c": np.array(True)}).SerializeToString())


ONNX = (bytes(linear(np.eye(3)).SerializeToString()), _branches())


def _patches() -> tuple[bytes, ...]:
    """Patches of a model, tensor by tensor, and of bytes that are none."""
    step = bytes(linear(np.eye(24) * 1.01).SerializeToString())
    other = OLD_FILE[700:] + b"new" + OLD_FILE[:650]
    return tuple(patch for new in (step, other) if (patch := make_patch(OLD_FILE, new)))


OLD_FILE = bytes(linear(np.eye(24) + np.arange(24)).SerializeToString())
PATCHES = _patches()


def _tuf() -> tuple[bytes, ...]:
    """A publisher's targets with one release, and a root."""
    signer, expires = (
        Signer(Ed25519PrivateKey.from_private_bytes(bytes(32))),
        datetime(2099, 1, 1, tzinfo=UTC),
    )
    targets, root = Targets(expires=expires), Root(expires=expires)
    custom = {"release_counter": 3, "hw_classes": ["any"], "min_agent": "0.1.0"}
    targets.targets[TARGET] = TargetFile(7, {"sha256": "0" * 64}, TARGET, {"custom": custom})
    root.add_key(roles.tuf_key(signer.public), "root")
    return roles.sign(targets, [signer]), roles.sign(root, [signer])


def _releases() -> tuple[bytes, ...]:
    """A release on its way between two signers, and plain metadata of one."""
    targets, root = _tuf()
    top = Targets(expires=datetime(2099, 1, 1, tzinfo=UTC))
    signer = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    key = roles.tuf_key(signer.public)
    role = DelegatedRole("acme", [key.keyid], 1, True, paths=["models/acme/*"])
    top.delegations = Delegations({key.keyid: key}, {"acme": role})
    bins = Targets(expires=datetime(2099, 1, 1, tzinfo=UTC))
    bins.delegations = Delegations(
        {key.keyid: key}, succinct_roles=SuccinctRoles([key.keyid], 1, 1, "acme_bin")
    )
    empty = roles.sign(Targets(expires=datetime(2099, 1, 1, tzinfo=UTC)), [signer])
    own = roles.sign(bins, [signer])
    moved = {"acme": own, "acme_bin-0": targets, "acme_bin-1": empty}
    later = Root(version=2, expires=datetime(2099, 1, 1, tzinfo=UTC))
    for name in ("root", "targets"):
        later.add_key(key, name)
    roots = [root, roles.sign(later, [signer])]
    file = ReleaseFile("acme", moved, {"acme": targets}, roots, roles.sign(top, [signer]))
    return file.to_bytes(), file.for_fleet(), targets


def _change() -> bytes:
    """A change of keys that one of its holders has signed."""
    now = datetime(2026, 11, 1, tzinfo=UTC)
    signers = [Signer(Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in range(5)]
    keys = [roles.tuf_key(signer.public) for signer in signers]
    roots = [offline.named(key, f"root-{n}") for n, key in enumerate(keys[:3], 1)]
    online = dict.fromkeys(ONLINE, signers[3].public)
    acme = offline.PublisherKeys(1, (offline.named(keys[4], "publisher-acme"),))
    standing: dict[str, Root | Targets] = {
        change.CATALOG_ROOT: offline.catalog_root(roots, online, version=1, now=now),
        change.DIRECTOR_ROOT: offline.director_root(roots, online, version=1, now=now),
        change.PUBLISHERS: offline.delegations({"acme": acme}, version=1, now=now),
    }
    wishes = change.Wishes({"root-2": offline.named(keys[4], "root-2")}, {"globex": acme})
    signed = {name: roles.sign(role, signers[:2]) for name, role in standing.items()}
    begun = change.propose("demo", signed, online, wishes, now)
    signer = CryptoSigner(signers[0].private_key)
    return change.write_change(change.approve(begun, signer))


PLAN = b"""{"model":"reader","model_version":"1.1.0","publisher":"acme","slot":"camera",
"selector":"site=porto and not tag:lab","stages":[{"name":"canary","count":2,"bake_s":60,
"min_samples":2,"analysis":{}},{"name":"rest","gate":true}],"probation":{"min_answered":30}}"""
AGENT_TOML = b"""http_port = 8450
http_host = "127.0.0.1"
poll_s = 0.2
reconnect_cap_s = 300
log_level = "info"
"""
FLEET_TOML = b"""fleet_id = "demo"
port = 8440
shards = 4
tick_s = 0.25
advertise_host = "fleet.example"
"""


def enrol_request() -> bytes:
    csr = (SEEDS / "request.pem").read_text()
    return to_json(EnrolRequest(bytes(32), csr, bytes(32), Inventory(platform="linux-x86_64")))


def enrol_answer() -> bytes:
    return to_json(
        EnrolAnswer(DEVICE, DEVICE, "demo", "PEM", "PEM", b"{}", ROOT_FILE, "mqtts://h:8883", 4)
    )


def inference() -> tuple[bytes, ...]:
    plain = b"""{"id":"a","inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,2.5]},
    {"name":"t","datatype":"BYTES","shape":[1],"data":["abc"]}],"outputs":[{"name":"x"}]}"""
    binary = b"""{"inputs":[{"name":"x","datatype":"FP32","shape":[1,2],"parameters":
    {"binary_data_size":8}},{"name":"t","datatype":"BYTES","shape":[1],"parameters":
    {"binary_data_size":5}}]}"""
    return (
        len(plain).to_bytes(2, "big") + plain,
        len(binary).to_bytes(2, "big") + binary + bytes(8) + b"\x01\0\0\0a",
    )


CUSTOM = json.dumps({
    "path": TARGET, "hashes": {"sha256": "0" * 64},
    "custom": {"release_counter": 3, "hw_classes": ["any"], "min_agent": "0.1.0",
               "may_fall_back_to": [], "device": DEVICE, "slot": "camera", "rollout": "r-1", "nonce": "a-1"},
}).encode()  # fmt: skip
ORDERS: tuple[ToServe, ...] = (Settings(1.0), Accept(), Drain())
ANSWERS: tuple[FromServe, ...] = (Stats({"a": SlotStats(1, 0, 2.0, 3.0)}), Ready("b", 1.0))
TOKEN = format_token(
    EnrolmentToken(
        DEVICE, bytes(32), "https://fleet:8441", "sha256:" + "0" * 64, "sha256:" + "1" * 64
    )
).encode()
TUF = _tuf()
RELEASES = _releases()
CHANGE = _change()

KEY_NAMES = (
    b"pkcs11:token=acme;object=release;id=%01%ff?module-path=/usr/lib/module.so",
    b"pkcs11:model=SoftHSM%20v2;manufacturer=SoftHSM%20project;serial=5ab8c1f2;id=%A1;type=private",
    b"exec:openssl dgst -sha256 -sign 'my key.pem'?public=service.pub",
)
PUBLIC_KEYS = tuple(
    public_pem(public_key(key.public_key(), ""))
    for key in (
        Ed25519PrivateKey.from_private_bytes(bytes(range(32))),
        derive_private_key(0x1234567890ABCDEF, SECP256R1()),
    )
)
