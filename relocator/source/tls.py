"""Why a connection with TLS was refused, so that an operator knows what to change.

libnbd says no more than that a certificate is not right. So after a failure, and only then, the
handshake is done once more with Python's own TLS, which says what is wrong. Nothing is believed or
sent on that connection.
"""

import socket
import struct
from urllib.parse import urlsplit

from relocator.source.endpoint import NBD_PORT, Endpoint

_PATIENCE_S = 5.0
_OPTION = b"IHAVEOPT"
_STARTTLS, _ACK = 5, 1
_EXPIRED, _NOT_YET = 10, 9  # X509_V_ERR_*, see openssl-verification-options(1)
_HOSTNAME, _ADDRESS = 62, 64


def explain(endpoint: Endpoint, said: str) -> str:
    """What libnbd `said`, or what that means where it can be told better."""
    if "gnutls_handshake" in said and "timed out" in said:
        return "no answer in the TLS handshake"
    if "server requires TLS" in said:
        return (
            "the source takes encrypted connections only: write nbds://, with tls-certificates=DIR "
            "or tls-psk=FILE"
        )
    if "server refused TLS" in said:
        return (
            "the source doesn't encrypt: start it with nbdkit's --tls=require and its "
            "certificates, or write nbd:// to go on in clear"
        )
    if endpoint.certificates is not None and "certificate verification" in said:
        return _what_is_wrong(endpoint) or said
    if endpoint.certificates is not None and "gnutls_" in said:
        own = endpoint.certificates / "client-cert.pem"
        if own.is_file():
            return f"the source doesn't accept our certificate, {own}: {said}"
        return f"the source may want a certificate of ours, as {own} and client-key.pem: {said}"
    if endpoint.psk is not None and ("gnutls_handshake" in said or "getlogin_r" in said):
        if urlsplit(endpoint.uri).username is None:
            return f"write nbds://USER@HOST, where USER is the name before a key in {endpoint.psk}"
        return f"the source has another pre-shared key than {endpoint.psk} for this user: {said}"
    return said


def _what_is_wrong(endpoint: Endpoint) -> str | None:
    """What is wrong with the source's certificate; None if that can't be found out."""
    parts = urlsplit(endpoint.uri)
    if endpoint.certificates is None or parts.hostname is None:
        return None
    import ssl  # megabytes that hardly any server needs

    authority, host = endpoint.certificates / "ca-cert.pem", parts.hostname
    try:
        context = ssl.create_default_context(cafile=str(authority))
        with socket.create_connection((host, parts.port or NBD_PORT), _PATIENCE_S) as link:
            _ask_for_tls(link)
            context.wrap_socket(link, server_hostname=host).close()
    except ssl.SSLCertVerificationError as error:
        return _said_of(error.verify_code, error.verify_message, host, str(authority))
    except (OSError, ValueError):
        return None
    return None


def _said_of(code: int, message: str, host: str, authority: str) -> str:
    if code == _EXPIRED:
        return "the source's certificate has expired"
    if code == _NOT_YET:
        return "the source's certificate is not valid yet; are the clocks right?"
    if code in (_HOSTNAME, _ADDRESS):
        return f"the source's certificate is for another name than {host}"
    return f"the source's certificate is not from {authority}: {message}"


def _ask_for_tls(link: socket.socket) -> None:
    """Begin NBD's negotiation and ask for TLS; ValueError if the server doesn't agree."""
    greeting = _receive(link, 18)
    if greeting[8:16] != _OPTION:
        raise ValueError("not the new negotiation")
    (flags,) = struct.unpack(">H", greeting[16:])
    link.sendall(struct.pack(">I", flags & 3) + _OPTION + struct.pack(">II", _STARTTLS, 0))
    _, _, kind, _ = struct.unpack(">QIII", _receive(link, 20))
    if kind != _ACK:
        raise ValueError("no TLS")


def _receive(link: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = link.recv(count - len(data))
        if not piece:
            raise ValueError("hung up")
        data += piece
    return data
