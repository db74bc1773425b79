"""What a function URL makes of a function's result."""

import json

import pytest

from opslib.rehearsal.functions.url_events import read_result


@pytest.mark.parametrize(
    "result",
    [
        {"statusCode": 101},
        {"statusCode": 600},
        {"statusCode": "abc"},
        {"statusCode": 200, "headers": {"two words": "x"}},
        {"statusCode": 200, "headers": {"": "x"}},
        {"statusCode": 200, "headers": {"x": "a\r\nb: c"}},
        {"statusCode": 200, "headers": ["x"]},
        {"statusCode": 200, "body": 5},
        {"statusCode": 200, "body": "!", "isBase64Encoded": True},
    ],
)
def test_what_is_no_reply_of_http_is_refused(result):
    with pytest.raises((ValueError, TypeError)):
        read_result(json.dumps(result).encode())


@pytest.mark.parametrize(("result", "body"), [(None, b"null"), ("héllo", "héllo".encode()), ([1], b"[1]")])
def test_what_has_no_status_is_the_body(result, body):
    reply = read_result(json.dumps(result).encode())
    assert (reply.status, reply.body) == (200, body)


def test_headers_stand_once_whatever_their_case():
    reply = read_result(b'{"statusCode": 204, "headers": {"content-TYPE": "text/plain", "Content-Length": "9"}}')
    assert (reply.status, reply.headers) == (204, {"content-TYPE": "text/plain"})
