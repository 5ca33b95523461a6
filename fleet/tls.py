"""How the device listener speaks TLS: 1.3, and it asks for a certificate without insisting.

A device that enrols has no certificate yet; every other one must show it (`fleet.caller`). What is
shown is checked in the handshake: issued under our root, for clients, valid now.
"""

import ssl

from fleet.broker_config import TlsFiles

__all__ = ["device_context"]


def device_context(files: TlsFiles, ca: str) -> ssl.SSLContext:
    """Return the device listener's side of TLS.

    Args:
        files: the listener's certificate and key.
        ca: PEM of the roots whose devices it knows.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(str(files.certificate), str(files.key))
    context.load_verify_locations(cadata=ca)
    context.verify_mode = ssl.CERT_OPTIONAL
    # a session taken up again would not show its certificate again, expired or not
    context.num_tickets = 0
    return context
