"""The verifier's child: its answer, its silence, its end.

What it verifies is tested in `tests/flows/test_trust.py`.
"""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

from agent.verify import verify
from agent.verify_protocol import VerifyAnswer, VerifyRequest
from skerry.canonical import from_msgpack, to_msgpack
from skerry.errors import SkerryError, UnreachableError


def request(folder: Path) -> VerifyRequest:
    return VerifyRequest(
        target="models/acme/reader@1.0.0",
        director={},
        catalog_url="http://127.0.0.1:1",
        catalog_root=b"{}",
        director_root=b"{}",
        directory=str(folder),
        now=1_800_000_000.0,
        timeout_s=1.0,
    )


async def test_a_root_that_is_none_is_refused(tmp_path: Path) -> None:
    answer = await verify(request(tmp_path), 30.0)
    assert (answer.code, answer.transient) == ("metadata_invalid", False)
    assert answer.message.startswith("director: ")


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("import time; time.sleep(60)", UnreachableError),
        ("import os; os.abort()", SkerryError),
        ("raise SystemExit('it broke')", SkerryError),
    ],
)
async def test_a_child_without_an_answer_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, error: type[SkerryError]
) -> None:
    start = asyncio.create_subprocess_exec

    async def other(*_: str, **pipes: int) -> asyncio.subprocess.Process:
        return await start(sys.executable, "-c", program, **pipes)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", other)
    with pytest.raises(error):
        await verify(request(tmp_path), 1.0)


async def test_the_child_has_ended_when_it_has_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So its memory is given back; of two at a time, each has its own."""
    start, children = asyncio.create_subprocess_exec, []

    async def noted(*command: str, **pipes: int) -> asyncio.subprocess.Process:
        children.append(await start(*command, **pipes))
        return children[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", noted)
    await asyncio.gather(verify(request(tmp_path), 30.0), verify(request(tmp_path), 30.0))
    assert [child.returncode for child in children] == [0, 0]
    assert not any(Path(f"/proc/{child.pid}").exists() for child in children)


def test_the_child_loads_nothing_that_verifies_nothing(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "agent.verifier_child"],
        input=to_msgpack(request(tmp_path)), capture_output=True, check=True,
    )  # fmt: skip
    assert from_msgpack(child.stdout, VerifyAnswer).code == "metadata_invalid"
    loaded = {line.rpartition("|")[2].strip() for line in child.stderr.decode().splitlines()}
    assert "tuf.ngclient.updater" in loaded
    unused = ("asyncio.", "asn1crypto.", "numpy.", "onnx.", "pkcs11.", "urllib3.")
    assert [name for name in loaded if name.startswith(unused)] == []
