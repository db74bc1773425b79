"""Signatures of requests: who signed, and whether with the right secret.

Signature Version 4 in the Authorization header or in a presigned address, and the older presigned form that boto3 still
makes for S3 in us-east-1. Sources:
https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html,
https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from urllib.parse import parse_qsl, quote

from botocore.auth import HmacV1Auth

ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = "UNSIGNED-PAYLOAD"
_SIGNED_IN_QUERY = frozenset(HmacV1Auth.QSAOfInterest)
"""The parts of a query that the older form signs: what is asked of the object, and how the reply is to look."""


@dataclass(frozen=True)
class SignedRequest:
    """The parts of a request that a signature covers; `path` and `query` as they came, percent-encoded."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class Signature:
    """What a request says of its signer; `date` is empty in the older form, `expires` set for presigned addresses."""

    access_key_id: str
    date: str
    region: str
    service: str
    signature: str
    signed_headers: tuple[str, ...] = ()
    timestamp: str = ""
    expires: datetime | None = None
    token: str = ""

    @property
    def has_expired(self) -> bool:
        """Whether this is the signature of a presigned address whose time is over."""
        return self.expires is not None and datetime.now(UTC) > self.expires


def read_signature(request: SignedRequest) -> Signature | None:
    """Return the signature in a request's Authorization header or query, or None when there is none to be read."""
    try:
        return _read(request)
    except (ValueError, OverflowError):  # dates or numbers that are none
        return None


def _read(request: SignedRequest) -> Signature | None:
    header = request.headers.get("Authorization", "")
    if header.startswith(ALGORITHM):
        fields = dict(part.strip().partition("=")[::2] for part in header[len(ALGORITHM) :].split(","))
        token = request.headers.get("X-Amz-Security-Token", "")
        return _version_4(fields, request.headers.get("X-Amz-Date", ""), token)
    query = dict(parse_qsl(request.query))
    if query.get("X-Amz-Algorithm") == ALGORITHM:
        fields = {name: query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature")}
        return _version_4(fields, query.get("X-Amz-Date", ""), query.get("X-Amz-Security-Token", ""), query)
    if {"AWSAccessKeyId", "Signature", "Expires"} <= query.keys():
        return Signature(
            query["AWSAccessKeyId"], date="", region="us-east-1", service="s3", signature=query["Signature"],
            expires=datetime.fromtimestamp(int(query["Expires"]), UTC), token=query.get("x-amz-security-token", ""),
        )  # fmt: skip
    return None


def _version_4(
    fields: Mapping[str, str], timestamp: str, token: str, query: Mapping[str, str] | None = None
) -> Signature | None:
    scope = fields.get("Credential", "").split("/")
    if len(scope) != 5:
        return None
    expires = None
    if query is not None:
        signed_at = datetime.strptime(timestamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        expires = signed_at + timedelta(seconds=int(query.get("X-Amz-Expires", "0")))
    names = tuple(fields.get("SignedHeaders", "").split(";"))
    return Signature(*scope[:4], fields.get("Signature", ""), names, timestamp, expires, token)


def is_signed_with(secret: str, request: SignedRequest, signature: Signature) -> bool:
    """Return whether the request, as it arrived, was signed with this secret access key."""
    if not signature.date:
        expected = hmac.digest(secret.encode(), _older_string_to_sign(request, signature).encode(), "sha1")
        return hmac.compare_digest(base64.b64encode(expected), signature.signature.encode())
    canonical = _canonical_request(request, signature)
    scope = f"{signature.date}/{signature.region}/{signature.service}/aws4_request"
    to_sign = "\n".join([ALGORITHM, signature.timestamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = _signing_key(secret, signature.date, signature.region, signature.service)
    return hmac.compare_digest(
        hmac.digest(key, to_sign.encode(), "sha256").hex().encode(), signature.signature.encode()
    )


@lru_cache(maxsize=256)
def _signing_key(secret: str, *scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (*scope, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def _canonical_request(request: SignedRequest, signature: Signature) -> str:
    # S3 signs the path as it is sent; every other service signs it encoded once more.
    path = request.path if signature.service == "s3" else quote(request.path, safe="/~")
    pairs = [pair for pair in parse_qsl(request.query, keep_blank_values=True) if pair[0] != "X-Amz-Signature"]
    query = "&".join(sorted(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs))
    values = [(name, " ".join(request.headers.get(name, "").split())) for name in signature.signed_headers]
    headers = "".join(f"{name}:{value}\n" for name, value in values)
    payload = request.headers.get("X-Amz-Content-Sha256", "")
    if signature.expires is not None:
        payload = payload or _UNSIGNED
    payload = payload or hashlib.sha256(request.body).hexdigest()
    return "\n".join([request.method, path, query, headers, ";".join(signature.signed_headers), payload])


def _older_string_to_sign(request: SignedRequest, signature: Signature) -> str:
    headers = [request.headers.get(name, "") for name in ("Content-MD5", "Content-Type")]
    token = [f"x-amz-security-token:{signature.token}"] if signature.token else []
    expires = str(int(signature.expires.timestamp())) if signature.expires else ""
    pairs = sorted(pair for pair in parse_qsl(request.query, keep_blank_values=True) if pair[0] in _SIGNED_IN_QUERY)
    query = "&".join(f"{name}={value}" if value else name for name, value in pairs)
    return "\n".join([request.method, *headers, expires, *token, f"{request.path}?{query}" if query else request.path])
