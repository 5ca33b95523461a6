"""Every parser that reads what somebody else wrote, as a target of the fuzzer."""

import contextlib
import io
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
from tuf.api.metadata import Root, Targets

from agent.config import load_config
from agent.feedback import JoinPlan, read_label, read_rows
from agent.oip import check_wanted, decode_request, read_inputs
from agent.serve_protocol import (
    Frames,
    frame,
    frames_from_control,
    frames_from_serve,
)
from compiler.believe import parse_targets
from compiler.handover import as_current, trust_in, verify_delegations
from compiler.recipe import parse_recipe
from compiler.tensor_spans import tensor_spans
from fleet import config as fleet_config
from fleet import roles
from fleet.acceptance import read_offer
from fleet.api.body import parse_body
from fleet.byte_range import byte_range
from fleet.certificates import requested_key_id
from fleet.change import owed, read_change
from fleet.change_words import describe
from fleet.ingest import above_cursor
from fleet.intake import check_envelope, check_reported, check_result, sound_items
from fleet.plan import Plan, check_plan
from skerry import wire
from skerry.bundle import parse_oci_manifest, read_bundle
from skerry.canonical import from_json, from_msgpack, sha256, to_json, to_msgpack
from skerry.custom import catalog_target, director_target, message_keys
from skerry.delta import apply_patch
from skerry.enrolment import MAX_ENROL_BYTES, EnrolAnswer, EnrolRequest
from skerry.errors import FormatError, RefusedError, SkerryError, TrustError, UsageError
from skerry.feedback import check_errors, merge_errors
from skerry.holding import Delegation, Holding
from skerry.io.exec_signer import parse_exec
from skerry.io.key_files import key_id_of, parse_public, public_pem
from skerry.manifest import (
    Golden,
    TensorSpec,
    parse_baseline,
    parse_manifest,
)
from skerry.onnx_outline import IMPORT, check_outline
from skerry.pkcs11_uri import parse_key_uri
from skerry.profile import Inventory, incompatibility
from skerry.records import Context, Errors
from skerry.release_file import read_release_file
from skerry.sketch import Column, ColumnSpec, check_column, merge, total
from skerry.tensors import from_raw
from skerry.token import parse_token
from skerry.toml import from_toml
from skerry.topics import parse_up
from skerry.topics import up as up_topic
from tests.fakes.releases import BASELINE
from tests.fuzz.data_targets import data_targets
from tests.fuzz.good import (
    AGENT_TOML,
    ANSWERS,
    ANY_KEY,
    CHANGE,
    CUSTOM,
    DEVICE,
    EXAMPLES,
    FLEET_TOML,
    KEY_NAMES,
    MANIFEST,
    OLD_FILE,
    ONNX,
    ORDERS,
    PATCHES,
    PLAN,
    PUBLIC_KEYS,
    RELEASES,
    ROOT_FILE,
    SEEDS,
    TOKEN,
    TUF,
    downs,
    enrol_answer,
    enrol_request,
    errors,
    feedback,
    golden,
    inference,
    reported,
    sealed_up,
    telemetry,
)
from tests.fuzz.harness import Target
from tests.fuzz.makers import (
    json_tree,
    msgpack_tree,
    rebuilt,
    spoilt_bundle,
    spoilt_change,
    spoilt_frame,
    spoilt_message,
    spoilt_patch,
    spoilt_pem,
    spoilt_token,
)

_CONTEXT = Context("camera", "reader", "1.0.0", "sha256:" + "0" * 64, "fp32-cpu")
JOIN_PLANS = (JoinPlan(_CONTEXT, 2, ["no", "yes"]), JoinPlan(_CONTEXT, 0, []))


def _read_bundle(data: bytes) -> None:
    bundle = read_bundle(io.BytesIO(data), limit_bytes=1 << 20)
    assert sha256(bundle.oci) == bundle.digest
    assert all(sha256(blob) == digest for digest, blob in bundle.blobs.items())


def _onnx(data: bytes) -> None:
    outline = check_outline(data, IMPORT)
    assert outline.depth <= IMPORT.depth


def _patch(data: bytes) -> None:
    made = 0
    for piece in apply_patch(io.BytesIO(OLD_FILE), io.BytesIO(data), limit_bytes=1 << 20):
        made += len(piece)
        assert made <= 1 << 20


def _tensor_spans(data: bytes) -> None:
    for span in tensor_spans(data).values():
        assert 0 <= span.start < span.end <= len(data)


def _read_manifest(data: bytes) -> None:
    manifest = parse_manifest(data)
    for variant in manifest.variants:
        incompatibility(variant, Inventory(platform="linux-x86_64"), (0, 1, 0))
    assert parse_manifest(to_json(manifest)) == manifest


def _open_up(data: bytes) -> None:
    wire.peek_up(data)
    up, body = wire.open_up(data, ANY_KEY, device=DEVICE)
    check_envelope(up, up.type)
    match body:
        case wire.Batch():
            run = above_cursor(body, 0, device=DEVICE, boot=up.boot)
            if run is not None and body.last < 1 << 62:
                for _, item in sound_items(run.items, run.contexts, _specs):
                    to_msgpack(item)
        case wire.Reported():
            if check_reported(body):
                to_json(body)
        case wire.Result():
            if check_result(body):
                to_json(body)
        case _:
            to_msgpack(body)


def _specs(_: str) -> dict[str, ColumnSpec]:
    return {name: column.spec for name, column in BASELINE.columns.items()}


def _open_down(data: bytes) -> None:
    _, body = wire.open_down(data, {ANY_KEY.key_id: ANY_KEY}, device=DEVICE, now=1.0)
    if isinstance(body, wire.Desired):
        for content in body.director.values():
            _director_file(content)


def _tuf(data: bytes) -> None:
    for kind in (Targets, Root):
        with contextlib.suppress(FormatError):
            metadata = roles.parse(data, kind, "a file")  # type: ignore[type-abstract]
            metadata.signed_bytes  # noqa: B018 - what signatures are over
    for path, target in parse_targets(data).signed.targets.items():
        custom = target.unrecognized_fields.get("custom")
        catalog_target(path, target.length, target.hashes, custom)


def _release_file(data: bytes) -> None:
    file = read_release_file(data)
    read_release_file(file.for_fleet())
    offer = read_offer(data)
    with contextlib.suppress(TrustError):
        Holding(offer.publisher, offer.roles).check_shape(Delegation({}, 1))
    now = datetime(2026, 11, 1, tzinfo=UTC)
    trust_in(as_current(file, offer.publisher), root=None, keys=(), now=now)
    if file.targets is not None:
        verify_delegations(TUF[1], file.roots, file.targets, now)


def _change(data: bytes) -> None:
    change = read_change(data)
    describe(change)
    str(owed(change))


def _director_file(data: bytes) -> None:
    root = from_json(data, dict[str, Any])
    signed = root.get("signed")
    message_keys(signed if isinstance(signed, dict) else {})


def _sketch(data: bytes) -> None:
    columns = from_msgpack(data, dict[str, Column])
    for name, column in columns.items():
        known = BASELINE.columns.get(name)
        if known is None:
            continue
        check_column(column, known.spec)
        twice = merge(column, merge(column, known.counts))
        assert total(twice) == twice.n
        to_msgpack(twice)


def _baseline(data: bytes) -> None:
    for column in parse_baseline(data).columns.values():
        check_column(merge(column.counts, column.counts), column.spec)


def _golden(data: bytes) -> None:
    golden = from_msgpack(data, Golden, limit=1 << 20)
    for tensor in (*golden.inputs, *golden.outputs):
        from_raw(tensor.data, tensor.datatype, tensor.shape)


def _json(data: bytes) -> None:
    value = from_json(data, dict[str, Any])
    assert to_json(from_json(to_json(value), dict[str, Any])) == to_json(value)


def _msgpack(data: bytes) -> None:
    msgspec.msgpack.encode(from_msgpack(data, dict[str, Any]))


def _agent_config(data: bytes) -> None:
    load_config(None, **from_toml(data, "agent.toml"))


def _fleet_config(data: bytes) -> None:
    fleet_config._typed(Path("/data"), from_toml(data, "fleet.toml"), "fleet.toml")


def _plan(data: bytes) -> None:
    to_json(check_plan(parse_body(data, Plan), 12))


def _policy(data: bytes) -> None:
    changes = parse_body(data, dict[str, Any])
    try:
        to_json(msgspec.convert({"version": 1, **changes}, wire.Policy))
    except msgspec.ValidationError as error:
        raise UsageError(str(error)) from None


def _enrol(data: bytes) -> None:
    request = from_json(data, EnrolRequest, limit=MAX_ENROL_BYTES)
    requested_key_id(request.csr)


def _answer(data: bytes) -> None:
    answer = from_json(data, EnrolAnswer, limit=4 * MAX_ENROL_BYTES)
    _director_file(answer.director_root)


def _custom(data: bytes) -> None:
    target = from_json(data, dict[str, Any])
    path, hashes, custom = (target.get(key) for key in ("path", "hashes", "custom"))
    if isinstance(path, str) and isinstance(hashes, dict):
        for read in (catalog_target, director_target):
            with contextlib.suppress(TrustError):
                read(path, 1, {k: v for k, v in hashes.items() if isinstance(v, str)}, custom)


def _frames(data: bytes) -> None:
    _feed(frames_from_control(), data)


def _answers(data: bytes) -> None:
    _feed(frames_from_serve(), data)


def _feed(reader: Frames[Any], data: bytes) -> None:
    for start in range(0, len(data), 100):
        reader.feed(data[start : start + 100])


def _infer(data: bytes) -> None:
    length = int.from_bytes(data[:2], "big")
    specs = {"x": TensorSpec("x", "FP32", [-1, 2]), "t": TensorSpec("t", "BYTES", [-1])}
    request, raw = decode_request(data[2:], length)
    check_wanted(request, specs)
    read_inputs(request, raw, specs)


def _feedback(data: bytes) -> None:
    rows, _ = read_rows(data)
    for _, label in rows:
        for plan in JOIN_PLANS:
            with contextlib.suppress(UsageError):
                assert math.isfinite(read_label(plan, label))


def _errors(data: bytes) -> None:
    for sketch in from_msgpack(data, Errors).sketches:
        check_errors(sketch)
        twice = merge_errors(sketch, sketch)
        check_errors(twice)
        to_msgpack(twice)


def _line(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    if not text.startswith("bytes"):
        parse_up(text, 4)
    byte_range(text, 1000)


def _key_name(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    (parse_exec if text.startswith("exec") else parse_key_uri)(text)


def _public_key(data: bytes) -> None:
    key = parse_public(data, "a file")
    key_id_of(key)
    assert parse_public(public_pem(key), "again") == key


def all_targets() -> dict[str, Target]:
    """Return every target, by name."""
    columns = to_msgpack({name: column.counts for name, column in BASELINE.columns.items()})
    oci = read_bundle(io.BytesIO(rebuilt(MANIFEST))).oci
    recipes = tuple(path.read_bytes() for path in sorted(EXAMPLES.glob("reader-*.toml"))[:2])
    ups = tuple(
        sealed_up(kind, body)
        for kind, body in (
            ("telemetry", telemetry()), ("reported", reported()), ("result", wire.Result("c-1", True, "done")),
            ("hello", wire.Hello("0.1.0", 3, 4, "os-1")), ("health", wire.Health(1, 2, 3, 4, 5.0)),
        )
    )  # fmt: skip
    targets = (
        Target("bundle", _read_bundle, (FormatError,), (rebuilt(MANIFEST),), spoilt_bundle),
        Target("oci_manifest", parse_oci_manifest, (FormatError,), (oci,), json_tree),
        Target("onnx", _onnx, (FormatError, RefusedError), ONNX),
        Target("patch", _patch, (FormatError,), PATCHES, spoilt_patch),
        Target("tensor_spans", _tensor_spans, (), ONNX),
        Target("manifest", _read_manifest, (FormatError,), (MANIFEST,), json_tree),
        Target("baseline", _baseline, (FormatError,), (to_msgpack(BASELINE),), msgpack_tree),
        Target("golden", _golden, (FormatError,), (golden(),), msgpack_tree),
        Target("message_up", _open_up, (FormatError, TrustError), ups, spoilt_message),
        Target("message_down", _open_down, (FormatError, TrustError), downs(), spoilt_message),
        Target("sketch", _sketch, (FormatError,), (columns,), msgpack_tree),
        Target("assignment", _custom, (FormatError, TrustError), (CUSTOM,), json_tree),
        Target("director_root", _director_file, (FormatError, TrustError), (ROOT_FILE,), json_tree),
        Target("tuf_metadata", _tuf, (FormatError, TrustError), TUF, json_tree),
        Target("release_file", _release_file, (FormatError, TrustError), RELEASES, json_tree),
        Target("change", _change, (FormatError, TrustError), (CHANGE,), spoilt_change, longest=len(CHANGE) + 2000),
        Target("enrol_request", _enrol, (FormatError, TrustError), (enrol_request(),), json_tree),
        Target("enrol_answer", _answer, (FormatError, TrustError), (enrol_answer(),), json_tree),
        Target("token", lambda d: parse_token(d.decode("utf-8", "surrogateescape")), (UsageError,), (TOKEN,), spoilt_token),
        Target("key_name", _key_name, (UsageError,), KEY_NAMES, longest=400),
        Target("public_key", _public_key, (TrustError,), PUBLIC_KEYS, spoilt_pem, longest=1000),
        Target("agent_config", _agent_config, (UsageError,), (AGENT_TOML,)),
        Target("fleet_config", _fleet_config, (UsageError,), (FLEET_TOML,)),
        Target("recipe", parse_recipe, (UsageError,), recipes),
        Target("api_plan", _plan, (SkerryError,), (PLAN,), json_tree),
        Target("api_policy", _policy, (UsageError, FormatError), (b'{"window_s":30,"records":"all"}',), json_tree),
        Target("canonical_json", _json, (FormatError,), (PLAN, MANIFEST), json_tree),
        Target("canonical_msgpack", _msgpack, (FormatError,), (to_msgpack(BASELINE), *downs()), msgpack_tree),
        Target("to_serve", _frames, (FormatError,), tuple(map(frame, ORDERS)), spoilt_frame),
        Target("from_serve", _answers, (FormatError,), tuple(map(frame, ANSWERS)), spoilt_frame),
        Target("inference", _infer, (UsageError,), inference()),
        Target("feedback", _feedback, (UsageError,), feedback(), json_tree),
        Target("error_sketches", _errors, (FormatError,), (to_msgpack(errors()),), msgpack_tree),
        Target("topic_and_range", _line, (FormatError,), (up_topic("demo", 4, DEVICE, "hello").encode(), b"bytes=0-99")),
    )  # fmt: skip
    named = {target.name: target for target in (*targets, *data_targets())}
    return {name: _with_kept(target) for name, target in named.items()}


def _with_kept(target: Target) -> Target:
    """Add the inputs that once broke a parser, `seeds/<target>-*`."""
    kept = tuple(path.read_bytes() for path in sorted(SEEDS.glob(f"{target.name}-*")))
    return Target(
        target.name, target.parse, target.errors, (*target.seeds, *kept), target.make, target.longest
    )  # fmt: skip
