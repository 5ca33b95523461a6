"""The verifier as a process: without what its libraries bring along and a device never uses.

securesystemslib looks for every kind of signer that happens to be installed, and python-tuf for an
HTTP client of its own. Both cost time and memory at each start, and verify nothing here.
"""

import sys
from types import ModuleType
from typing import Final

__all__: list[str] = []

SIGNERS: Final = (
    "asn1crypto",
    "azure",
    "boto3",
    "botocore",
    "google",
    "hvac",
    "pkcs11",
    "sigstore",
    "tkey",
)
FETCHER: Final = "Urllib3Fetcher"  # `agent.repository` gives its own instead


def _leave_out() -> None:
    for name in SIGNERS:
        sys.modules[name] = None  # type: ignore[assignment]  # as if it were not installed
    module = ModuleType("tuf.ngclient.urllib3_fetcher")
    setattr(module, FETCHER, type(FETCHER, (), {}))
    sys.modules[module.__name__] = module


if __name__ == "__main__":
    _leave_out()
    from agent.verifier import main

    main()
