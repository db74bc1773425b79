"""Requests that no SDK sends: each is refused at once, in AWS's words, and the next one is answered as ever."""

import contextlib
import logging
import socket
import urllib.request
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from tests.rehearsal.serving import allow, client_of


@pytest.fixture
def send(rehearsal, caplog):
    """Return what sends bytes and receives the reply: its status, and all of it; and see that nothing failed inside."""
    address = urlsplit(rehearsal.endpoint_url)

    def exchange(request: bytes) -> tuple[int, str]:
        with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
            connection.sendall(request)
            with connection.makefile("rb") as stream:
                lines = [stream.readline().decode()]
                while line := stream.readline().decode().strip():
                    lines.append(line)
                length = next((int(line[15:]) for line in lines if line.lower().startswith("content-length:")), 0)
                return int(lines[0].split()[1]), "\n".join(lines) + stream.read(length).decode()

    with caplog.at_level(logging.ERROR, logger="opslib.rehearsal"):
        yield exchange
    assert boto3.client("sts").get_caller_identity()["Account"] == "000000000000"
    assert [record.getMessage() for record in caplog.records if record.name.startswith("opslib")] == []


def signed(rehearsal, service: str, request: str, body: bytes = b"", **headers: str) -> bytes:
    """Return a signed request; `request` is e.g. "GET /path?query"."""
    method, path = request.split(" ")
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    asked = AWSRequest(method, rehearsal.endpoint_url + path, headers=names, data=body)
    variables = rehearsal.environment
    credentials = Credentials(variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"])
    SigV4Auth(credentials, service, "us-east-1").add_auth(asked)
    fields = {"Host": urlsplit(rehearsal.endpoint_url).netloc, "Content-Length": len(body), **asked.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{request} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def target(operation: str) -> dict[str, str]:
    return {"X_Amz_Target": f"SageMaker.{operation}", "Content_Type": "application/x-amz-json-1.1"}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"\x00\x01\x02 / HTTP/1.1\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nContent-Length: many\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nContent-Length: 1000000000000\r\n\r\nab", 413),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", 400),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffff\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 1000 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nno field\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: a\r\n folded\r\nConnection: close\r\n\r\n", 403),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n", 403),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"BREW / HTTP/1.1\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 nothing\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\nAuthorization: AWS4-HMAC-SHA256 Credential=////\r\n\r\n", 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_no_request_of_aws_is_refused_at_once(send, request_, status):
    assert send(request_)[0] == status


def test_a_signature_that_is_not_ascii_is_a_wrong_one(send, rehearsal):
    request = signed(rehearsal, "sagemaker", "POST /", b"{}", **target("ListModels"))
    head, _, rest = request.partition(b"Signature=")
    status, reply = send(head + b"Signature=\xff\xe9" + rest[64:])
    assert status == 400
    assert "InvalidSignatureException" in reply


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"Tags":' * 50_000,
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"MaxResults": NaN}',
        b'{"MaxResults": ' + b"9" * 10_000 + b"}",
        b'{"CreationTimeAfter": "yesterday"}',
        b'{"CreationTimeAfter": 1e300}',
        b'{"CreationTimeAfter": NaN}',
        b'{"CreationTimeAfter": true}',
    ],
    ids=lambda body: str(body)[:40],
)
def test_a_body_that_does_not_fit_is_a_serialization_exception(send, rehearsal, body):
    status, reply = send(signed(rehearsal, "sagemaker", "POST /", body, **target("ListTrainingJobs")))
    assert status == 400
    assert "x-amzn-ErrorType: SerializationException" in reply


@pytest.mark.parametrize(
    ("service", "request_", "body", "headers", "code"),
    [
        ("sagemaker", "POST /", b"{}", target("Nonsense"), "UnknownOperationException"),
        ("sagemaker", "POST /", b"{}", target(""), "UnknownOperationException"),
        ("lambda", "GET /nowhere", b"", {}, "UnknownOperationException"),
        ("lambda", "PATCH /2015-03-31/functions", b"", {}, "UnknownOperationException"),
        ("no-such-service", "GET /", b"", {}, "UnknownOperationException"),
        ("moto-api", "POST /moto-api/reset", b"", {}, "UnknownOperationException"),
        ("s3", "POST /moto-api/reset", b"", {}, "UnknownOperationException"),
        ("iam", "POST /", b"Action=No", {"Content_Type": "application/x-www-form-urlencoded"}, "InvalidAction"),
        ("lambda", "GET /2015-03-31/functions/?Marker=abc", b"", {}, "InvalidParameterValueException"),
        ("lambda", f"GET /2015-03-31/functions/?MaxItems={'9' * 5000}", b"", {}, "SerializationException"),
        ("lambda", "POST /2015-03-31/functions", b"[" * 100_000, {}, "SerializationException"),
        ("s3", "POST /bucket?delete", b"<Delete><Object><Key>\xff</Key>", {}, "MalformedXML"),
    ],
)
def test_operations_that_are_none_are_refused_in_awss_words(send, rehearsal, service, request_, body, headers, code):
    status, reply = send(signed(rehearsal, service, request_, body, **headers))
    assert status in {400, 404}
    assert code in reply


def test_deleting_objects_is_permitted_by_their_real_names(bucket):
    boto3.client("s3").put_object(Bucket=bucket, Key="a&b", Body=b"")
    boto3.client("s3").put_object(Bucket=bucket, Key="other", Body=b"")
    limited = client_of("s3", allow("s3:DeleteObject", resource=f"arn:aws:s3:::{bucket}/a&b"))
    assert limited.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a&b"}]})["Deleted"]
    with pytest.raises(ClientError, match="AccessDenied"):
        limited.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a&b"}, {"Key": "other"}]})


def test_a_presigned_address_may_say_how_the_reply_is_to_look(bucket):
    s3 = boto3.client("s3")
    s3.put_object(Bucket=bucket, Key="photo", Body=b"photo")
    asked = {"Bucket": bucket, "Key": "photo", "ResponseContentType": "text/plain"}
    with urllib.request.urlopen(s3.generate_presigned_url("get_object", asked)) as reply:
        assert reply.headers["Content-Type"] == "text/plain"
        assert reply.read() == b"photo"


def test_an_upload_that_breaks_off_is_not_stored(rehearsal, bucket):
    request = signed(rehearsal, "s3", f"PUT /{bucket}/half", b"0123456789", x_amz_content_sha256="UNSIGNED-PAYLOAD")
    address = urlsplit(rehearsal.endpoint_url)
    with socket.create_connection((address.hostname, address.port), timeout=10) as connection:
        connection.sendall(request[:-5])
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1000) == b""
    assert boto3.client("s3").list_objects_v2(Bucket=bucket)["KeyCount"] == 0


def test_slow_clients_hold_nobody_up(rehearsal):
    address = urlsplit(rehearsal.endpoint_url)
    with contextlib.ExitStack() as connections:
        for _ in range(100):
            slow = connections.enter_context(socket.create_connection((address.hostname, address.port)))
            slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\na")
        assert boto3.client("sts").get_caller_identity()["Account"] == "000000000000"
