"""How a client of ours speaks TLS: it shows its certificate, and checks chain and host name."""

import ssl
from pathlib import Path
from typing import Final

__all__ = ["client_context"]

HANDSHAKE_TIMEOUT_S: Final = 5.0


class _Socket(ssl.SSLSocket):
    """A socket that is closed when its handshake fails, and does not wait for one for long."""

    def do_handshake(self, block: bool = False) -> None:
        usual = self.gettimeout()
        try:
            if usual is None or usual > HANDSHAKE_TIMEOUT_S:
                self.settimeout(HANDSHAKE_TIMEOUT_S)
            super().do_handshake(block)
        except BaseException:
            # the MQTT library would leave it to the garbage collector
            self.close()
            raise
        self.settimeout(usual)


def client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Return a client's side of TLS 1.3.

    Args:
        ca: the authorities whose servers it speaks to; None for those of the system.
        certificate: its own, with the chain; None for none.
        key: of its certificate, not encrypted; may be in the same file.

    Raises:
        OSError: a file is missing or damaged.
    """
    context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if certificate is not None and key is not None:
        _load(context, str(certificate), str(key))
    context.sslsocket_class = _Socket
    return context


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    try:
        context.load_cert_chain(certificate, key)
    except ssl.SSLError:
        # a file that holds both is read twice, and may have been replaced between
        context.load_cert_chain(certificate, key)
