"""A photo from a URL that a client named: only from listed hosts, only public addresses, only so much for so long."""

import http.client
import ipaddress
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from urllib.parse import quote, urljoin, urlsplit

from opslib.vision.refusals import RequestError

MAX_REDIRECTS = 3
"""How many redirects are followed; each is checked like the first URL."""

TIMEOUT_SECONDS = 5.0
"""Time for everything: name lookups, redirects and the photo itself."""

_HTTPS_PORT = 443
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_URL_SAFE = "/?:@!$&'()*+,;=%~#[]"


def fetch_photo(url: str, hosts: frozenset[str], *, max_bytes: int, timeout_seconds: float = TIMEOUT_SECONDS) -> bytes:
    """Fetch a photo over https.

    The host of every hop must be in `hosts`, and all its addresses must be public. The connection goes to an address
    that was checked: a second lookup could give another one (DNS rebinding). Proxies of the environment are not used.

    Args:
        url: An https URL on port 443, without user name.
        hosts: Host names in lower case.
        max_bytes: Largest photo.
        timeout_seconds: Time for everything, redirects included.

    Raises:
        RequestError: 400 not such a URL, 403 not allowed, 413 too large, 424 the host failed or was too slow.
    """
    deadline = time.monotonic() + timeout_seconds
    for _ in range(MAX_REDIRECTS + 1):
        host, target = _checked(url, hosts)
        try:
            location, body = _get(host, target, max_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = f"took longer than {timeout_seconds:g} s" if time.monotonic() >= deadline else str(error)
            raise RequestError(HTTPStatus.FAILED_DEPENDENCY, f"{host} could not be read: {reason}") from error
        if not location:
            return body
        url = urljoin(url, location)
    raise RequestError(HTTPStatus.FAILED_DEPENDENCY, f"more than {MAX_REDIRECTS} redirects")


def _checked(url: str, hosts: frozenset[str]) -> tuple[str, str]:
    """Return host and request target of a URL that may be fetched."""
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").lower(), parts.port or _HTTPS_PORT
    except ValueError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"not a URL: {error}") from error
    if any(ord(char) <= 32 or ord(char) == 127 for char in url) or not host:
        raise RequestError(HTTPStatus.BAD_REQUEST, "not a URL")
    if not hosts:
        raise RequestError(HTTPStatus.FORBIDDEN, "this endpoint fetches no URLs; send the photo itself")
    if parts.scheme.lower() != "https" or port != _HTTPS_PORT or parts.username is not None:
        raise RequestError(HTTPStatus.FORBIDDEN, "only https URLs on port 443 and without user name are fetched")
    if host not in hosts:
        raise RequestError(HTTPStatus.FORBIDDEN, f"photos from {host} are not fetched")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return host, quote(target, safe=_URL_SAFE)


def _get(host: str, target: str, max_bytes: int, deadline: float) -> tuple[str, bytes]:
    """Return (location, nothing) of a redirect or (nothing, body) of an answer."""
    with _connection(host, deadline) as connection:
        connection.request("GET", target, headers={"User-Agent": "opslib", "Accept": "image/*", "Connection": "close"})
        with connection.getresponse() as response:
            if response.status in _REDIRECTS:
                return response.headers.get("Location") or "/", b""
            if response.status != HTTPStatus.OK:
                raise RequestError(HTTPStatus.FAILED_DEPENDENCY, f"{host} answered {response.status}")
            body = response.read(max_bytes + 1)
            _left(deadline)  # a connection that was cut off looks like one that has ended
            if len(body) > max_bytes:
                raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the photo has more than {max_bytes:,} bytes")
            if response.length:  # the connection ended before the length that the host had named
                raise http.client.IncompleteRead(body, response.length)
            return "", body


@contextmanager
def _connection(host: str, deadline: float) -> Iterator[http.client.HTTPConnection]:
    """Connect to a checked address; whatever is still going on at the deadline is cut off."""
    raw = _connect(_public_addresses(host, deadline), deadline)
    tls = _tls_context().wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
    # A socket's own time-out starts anew with every byte: a slow host could drip for hours.
    cutter = threading.Timer(_left(deadline), _cut, [tls])
    cutter.daemon = True
    connection = http.client.HTTPConnection(host)
    connection.sock = tls
    try:
        cutter.start()
        tls.do_handshake()
        yield connection
    finally:
        cutter.cancel()
        connection.close()


def _connect(addresses: list[tuple], deadline: float) -> socket.socket:
    *others, last = addresses
    for address in others:
        try:
            return socket.create_connection(address[:2], timeout=_left(deadline) / 2)
        except OSError:
            continue
    return socket.create_connection(last[:2], timeout=_left(deadline))


def _cut(connection: socket.socket) -> None:
    try:
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # SSLSocket's own would pull the rug from a reader
    except OSError:
        return  # closed already


def _public_addresses(host: str, deadline: float) -> list[tuple]:
    addresses = _resolve(host, _left(deadline))
    if not addresses or not all(_is_public(address[0]) for address in addresses):
        raise RequestError(HTTPStatus.FORBIDDEN, f"{host} does not have a public address")
    return addresses


def _resolve(host: str, timeout_seconds: float) -> list[tuple]:
    """Look up a name in a thread of its own: the system's lookup knows no time limit."""
    answers: queue.SimpleQueue[list[tuple] | OSError | UnicodeError] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put([found[4] for found in socket.getaddrinfo(host, _HTTPS_PORT, type=socket.SOCK_STREAM)])
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=look_up, daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_seconds)
    except queue.Empty as error:
        raise TimeoutError("the name lookup took too long") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        address = inner or address
    return address.is_global and not address.is_multicast


def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _left(deadline: float) -> float:
    """Return the seconds left.

    Raises:
        TimeoutError: There are none.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError("no time left")
    return seconds
