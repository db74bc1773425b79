"""Photos from URLs: a real TLS server on this machine, and everything that must not be fetched."""

import datetime
import ipaddress
import socket
import ssl
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from opslib.vision import fetching
from opslib.vision.fetching import fetch_photo
from opslib.vision.refusals import RequestError

HOSTS = frozenset({"photos.example", "cdn.example"})


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for the two hosts, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "photos.example")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


class Host(threading.Thread):
    """Answers every connection with the next of `answers`: bytes, or an iterator of bytes that takes its time."""

    def __init__(self, certificate):
        super().__init__(daemon=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.answers, self.requests = [], []

    def run(self):
        while True:
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return  # closed by the fixture
            threading.Thread(target=self.answer, args=[connection, self.answers.pop(0)], daemon=True).start()

    def answer(self, connection, parts):
        try:
            with self.context.wrap_socket(connection, server_side=True) as tls:
                self.requests.append(tls.recv(65536).decode())
                for part in [parts] if isinstance(parts, bytes) else parts:
                    tls.sendall(part)
        except OSError:
            return  # the client has had enough


@pytest.fixture
def host(certificate, monkeypatch):
    """A host that every name leads to, and that is taken for a public one."""
    running = Host(certificate)
    running.start()
    monkeypatch.setattr(fetching, "_resolve", lambda name, seconds: [running.socket.getsockname()])
    monkeypatch.setattr(fetching, "_is_public", lambda address: True)
    monkeypatch.setattr(fetching, "_tls_context", lambda: ssl.create_default_context(cafile=certificate))
    yield running
    running.socket.close()


def fetch(url="https://photos.example/dog.jpg", hosts=HOSTS, **options):
    return fetch_photo(url, hosts, **{"max_bytes": 1000, "timeout_seconds": 5} | options)


def ok(body, headers=b""):
    return b"HTTP/1.1 200 OK\r\n" + headers + b"Content-Length: %d\r\n\r\n" % len(body) + body


def redirect(location):
    return f"HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()


def status(**options):
    with pytest.raises(RequestError) as caught:
        fetch(**options)
    return caught.value.status_code, caught.value.message


def test_photo_is_fetched_from_the_address_that_was_checked(host):
    host.answers = [ok(b"photo")]
    assert fetch("https://Photos.example/a dog/ü.jpg?size=1".replace(" ", "%20")) == b"photo"
    assert host.requests[0].startswith("GET /a%20dog/%C3%BC.jpg?size=1 HTTP/1.1\r\nHost: photos.example\r\n")


def test_redirects_are_followed_to_listed_hosts_only(host):
    host.answers = [redirect("https://cdn.example/x.jpg"), redirect("/y.jpg"), ok(b"photo")]
    assert fetch() == b"photo"
    assert [request.split()[1] for request in host.requests] == ["/dog.jpg", "/x.jpg", "/y.jpg"]
    host.answers = [redirect("https://evil.example/x.jpg")]
    assert status()[0] == 403
    host.answers = [redirect("http://cdn.example/x.jpg")]
    assert status()[0] == 403
    host.answers = [redirect("/again")] * 4
    assert status() == (424, "more than 3 redirects")


def test_large_photos_are_refused(host):
    host.answers = [ok(bytes(1000)), ok(bytes(1001))]
    assert len(fetch()) == 1000
    assert status()[0] == 413
    host.answers = [b"HTTP/1.1 200 OK\r\n\r\n" + bytes(5000)]
    assert status()[0] == 413


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
)
def test_hosts_that_fail(host, answer):
    host.answers = [answer]
    assert status()[0] == 424


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n", ok(bytes(900))[:-880]])
def test_host_that_drips_is_cut_off(host, first):
    stopped = threading.Event()

    def drip():
        yield first
        while not stopped.wait(0.02):
            yield b"x"

    host.answers = [drip()]
    started = time.monotonic()
    code, message = status(timeout_seconds=0.4)
    stopped.set()
    assert code == 424
    assert "took longer than 0.4 s" in message
    assert time.monotonic() - started < 2


def test_certificate_must_be_the_hosts(host):
    host.answers = [ok(b"photo")]
    code, message = status(url="https://other.example/dog.jpg", hosts=frozenset({"other.example"}))
    assert code == 424
    assert "certificate" in message


def test_private_addresses_are_refused_before_a_connection_is_made(monkeypatch):
    monkeypatch.setattr(fetching, "_connect", None)
    for found in (["10.0.0.1"], ["8.8.8.8", "169.254.169.254"], ["::1"], []):
        monkeypatch.setattr(
            fetching, "_resolve", lambda name, seconds, found=found: [(address, 443) for address in found]
        )
        assert status() == (403, "photos.example does not have a public address")


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "192.0.2.1",
        "::",
        "::1",
        "fe80::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:db8::1",
    ],
)
def test_not_public(address):
    assert not fetching._is_public(address)
    assert ipaddress.ip_address(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_public(address):
    assert fetching._is_public(address)


def test_names_that_cannot_be_looked_up_in_time(monkeypatch):
    stopped = threading.Event()
    monkeypatch.setattr(fetching.socket, "getaddrinfo", lambda *_, **__: stopped.wait(5) and _fail_lookup())
    assert status(timeout_seconds=0.1) == (424, "photos.example could not be read: took longer than 0.1 s")
    stopped.set()
    monkeypatch.setattr(fetching.socket, "getaddrinfo", _fail_lookup)
    assert status()[0] == 424


def _fail_lookup(*arguments, **options):
    raise socket.gaierror(-2, "Name or service not known")
