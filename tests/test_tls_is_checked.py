"""No program of ours may speak TLS to a server that it has not checked."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = re.compile(
    r"tls_insecure_set|check_hostname\s*=\s*False|CERT_NONE|_create_unverified_context"
    r"|verify_mode\s*=\s*ssl\.CERT_OPTIONAL|tls_verify\s*=\s*False|ssl\s*=\s*False"
)
# where it is meant: a listener asks for certificates, an enrolment compares a fingerprint
MEANT = {
    "fleet/tls.py": {"verify_mode = ssl.CERT_OPTIONAL"},
    "agent/enroll.py": {"CERT_NONE", "check_hostname = False"},
}


def sources() -> list[Path]:
    packages = ("skerry", "agent", "fleet", "compiler", "devices")
    return [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_servers_are_checked(path: Path) -> None:
    found = set(FORBIDDEN.findall(path.read_text()))
    assert found <= MEANT.get(str(path.relative_to(ROOT)), set())


@pytest.mark.parametrize(
    "line", ["client.tls_insecure_set(True)", "context.check_hostname = False", "ssl.CERT_NONE"]
)
def test_the_search_finds(line: str) -> None:
    assert FORBIDDEN.search(line)
