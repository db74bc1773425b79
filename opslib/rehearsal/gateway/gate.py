"""Where every request enters: who is it, what is asked, may it be asked so, may they ask it; then the answer.

It stands in front of moto. Operations that the rehearsal really performs (training jobs, endpoints,
functions) are answered here; the rest, once it has passed the gate, by moto.
"""

import io
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Mapping
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from moto.core.model import OperationModel
from moto.s3.models import s3_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError, Witness
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.gateway.actions import Need, needs_of, s3_needs
from opslib.rehearsal.gateway.incoming import Incoming, operation_model
from opslib.rehearsal.gateway.other_protocols import read_other_parameters, write_other_reply
from opslib.rehearsal.gateway.protocols import JSON_PROTOCOLS, Reply, read_parameters, write_error, write_reply
from opslib.rehearsal.gateway.signatures import is_signed_with
from opslib.rehearsal.gateway.validation import reply_faults, validate_request, without_absent
from opslib.rehearsal.identity import (
    ADMINISTRATOR,
    Principal,
    find_principal,
    require_assumable_role,
    require_permission,
)

logger = logging.getLogger(__name__)

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
_FREE_ACTIONS = frozenset({"sts:GetCallerIdentity"})
_MOTO = "/moto-api"
"""moto's own address, from which everything could be reset."""
_OWN = "/rehearsal/"
"""The rehearsal's own door, for what AWS does by itself and offers no call for; the administrator's alone."""


class Gate:
    """Answers requests: `operations` are the rehearsal's own, by "service.Operation"; moto answers the others.

    A witness sees a call before moto answers it, may refuse it, and may change the body of the answer.
    """

    def __init__(
        self, moto: Wsgi, operations: Mapping[str, Operation], witnesses: Mapping[str, Witness], clock: Clock
    ) -> None:
        self._moto = moto
        self._clock = clock
        self._operations = operations
        self._witnesses = witnesses

    def respond(self, environ: dict[str, Any], body: bytes) -> Reply:
        """Answer one request, given as a WSGI environ and its body."""
        environ["HTTP_X_MOTO_ACCOUNT_ID"] = ACCOUNT_ID
        environ["wsgi.input"] = io.BytesIO(body)
        incoming = Incoming(environ, body, str(uuid.uuid4()))
        try:
            reply = self._answer(incoming)
        except ServiceError as error:
            reply = write_error(incoming.protocol, incoming.service, _as_spoken(error, incoming), incoming.request_id)
        # A reply to HEAD says how long the body would be; the body itself is not sent.
        length = (
            reply.headers.get("Content-Length", "0") if environ["REQUEST_METHOD"] == "HEAD" else str(len(reply.body))
        )
        headers = {
            name: value for name, value in reply.headers.items() if name.lower() not in {"content-length", "date"}
        }
        headers |= {"Content-Length": length, "x-amzn-RequestId": incoming.request_id}
        headers["Date"] = format_datetime(self._clock.now(), usegmt=True)  # AWS's "now", of metrics and alarms, too
        return Reply(reply.status, headers, reply.body)

    def _answer(self, incoming: Incoming) -> Reply:
        principal = authenticate(incoming)
        if incoming.signed.path.startswith(_OWN):
            return self._answer_own(incoming, principal)
        model = operation_model(incoming.service, incoming.operation)
        if incoming.signed.path.startswith(_MOTO) or (model is None and incoming.service != "s3"):
            raise _unknown_operation(incoming)
        params = self._read_and_validate(incoming, model)
        authorize(incoming, principal, params)
        region = incoming.signature.region if incoming.signature else "us-east-1"
        call = Call(
            incoming.service, incoming.operation, params, principal, region, incoming.request_id, incoming.headers,
            incoming.arrived,
        )  # fmt: skip
        name = f"{incoming.service}.{incoming.operation}"
        if name in self._operations and model is not None:
            return _checked_reply(incoming, model, self._operations[name](call))
        after = self._witnesses[name](call) if name in self._witnesses else None
        reply = self._ask_moto(incoming, model)
        if after is not None and reply.status < 300:
            reply = Reply(reply.status, reply.headers, after(reply.body))
        return reply

    def _answer_own(self, incoming: Incoming, principal: Principal) -> Reply:
        name = incoming.signed.path.removeprefix(_OWN)
        operation = self._operations.get(f"rehearsal.{name}")
        if operation is None or principal.role_name or principal.name != ADMINISTRATOR:
            raise _unknown_operation(incoming)
        try:
            params = dict(json.loads(incoming.body))
        except (ValueError, TypeError) as error:
            raise ServiceError("SerializationException", "a JSON object is expected") from error
        region = incoming.signature.region if incoming.signature else ""
        call = Call("rehearsal", name, params, principal, region, incoming.request_id, incoming.headers)
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(operation(call)).encode())

    def _read_and_validate(self, incoming: Incoming, model: OperationModel | None) -> dict[str, Any]:
        is_json = incoming.protocol in JSON_PROTOCOLS
        if model is None or not (is_json or f"{incoming.service}.{incoming.operation}" in self._operations):
            return dict(incoming.form)
        if is_json:
            params = read_parameters(model, incoming.body, incoming.route[1], incoming.query, incoming.headers)
        else:
            params = read_other_parameters(incoming.protocol, model, incoming.body, incoming.form)
        validate_request(incoming.service, model.input_shape, params)
        return params

    def _ask_moto(self, incoming: Incoming, model: OperationModel | None) -> Reply:
        started: list[Any] = []
        try:
            body = b"".join(self._moto(incoming.environ, lambda *said: started.extend(said)))
        except NotImplementedError as error:
            what = f"{incoming.service}:{incoming.operation}"
            raise ServiceError("NotImplemented", f"{what} cannot be rehearsed yet", status=501) from error
        status = int(started[0].split()[0])
        if model is not None and incoming.protocol in JSON_PROTOCOLS and status < 300 and body:
            body = _without_absent(model, body)
        headers = {name: value for name, value in started[1] if name.lower() != "content-length" or not body}
        return Reply(status, headers, body)


def _without_absent(model: OperationModel, body: bytes) -> bytes:
    try:
        value = json.loads(body)
    except ValueError:  # a payload that is not JSON, e.g. what a function returned
        return body
    return json.dumps(without_absent(model.output_shape, value)).encode()


def _checked_reply(incoming: Incoming, model: OperationModel, members: dict[str, Any]) -> Reply:
    members = {name: value for name, value in members.items() if value is not None}
    faults = reply_faults(model.output_shape, members)
    if faults:
        logger.error("the rehearsal's reply to %s is not AWS's: %s", model.name, faults)
        raise ServiceError("InternalFailure", f"the rehearsal's reply does not fit its model: {faults}", status=500)
    if incoming.protocol in JSON_PROTOCOLS:
        return write_reply(model, members)
    return write_other_reply(incoming.protocol, model, members, incoming.request_id)


def authenticate(incoming: Incoming) -> Principal:
    """Return who signed a request.

    Raises:
        ServiceError: it is not signed, with an unknown or expired key, or with another secret than the key's.
    """
    signature = incoming.signature
    if signature is None:
        raise ServiceError("MissingAuthenticationToken", "Request is missing Authentication Token", status=403)
    principal = find_principal(signature.access_key_id)
    if principal is None or principal.token != signature.token:
        raise ServiceError("InvalidClientTokenId", "The security token included in the request is invalid.", status=403)
    if signature.has_expired:
        raise ServiceError("AccessDenied", "Request has expired", status=403)
    if principal.has_expired:
        raise ServiceError("ExpiredToken", "The security token included in the request is expired", status=403)
    if not is_signed_with(principal.secret, incoming.signed, signature):
        message = "The request signature we calculated does not match the signature you provided."
        raise ServiceError("SignatureDoesNotMatch", message, status=403)
    return principal


def authorize(incoming: Incoming, principal: Principal, params: Mapping[str, Any]) -> None:
    """Refuse a call that IAM does not allow.

    Raises:
        ServiceError: AccessDenied, in AWS's words.
    """
    region = incoming.signature.region if incoming.signature else ""
    # The loopback interface counts as a secure transport: nothing else can listen in on it.
    context = {"aws:securetransport": ["true"], "aws:requestedregion": [region]}
    policy = ""
    if incoming.service == "s3":
        needs, policy = _s3_needs(incoming), _bucket_policy(incoming.bucket_and_key[0])
    else:
        needs = needs_of(incoming.service, incoming.operation, params, region)
    for need in needs:
        if need.action not in _FREE_ACTIONS:
            require_permission(principal, need, context, policy)
    if incoming.service == "sts" and incoming.operation == "AssumeRole":
        require_assumable_role(principal, params)


def _unknown_operation(incoming: Incoming) -> ServiceError:
    if incoming.protocol == "query":
        return ServiceError("InvalidAction", f"Could not find operation {incoming.operation}")
    status = 400 if incoming.protocol == "json" else 404
    return ServiceError("UnknownOperationException", "The requested operation is not known.", status=status)


def _s3_needs(incoming: Incoming) -> list[Need]:
    bucket, key = incoming.bucket_and_key
    if incoming.operation == "DeleteObjects":
        return [need for one in _keys_to_delete(incoming.body) for need in s3_needs("DeleteObject", bucket, one, {})]
    needs = s3_needs(incoming.operation, bucket, key, incoming.query)
    source = unquote(incoming.headers.get("x-amz-copy-source", "")).partition("?")[0].lstrip("/")
    if source:
        needs += s3_needs("GetObject", *source.partition("/")[::2], {})
    return needs


def _keys_to_delete(body: bytes) -> list[str]:
    try:
        listed = ElementTree.fromstring(body)  # noqa: S314 - expat bounds what entities may grow to
    except ElementTree.ParseError as error:
        message = "The XML you provided was not well-formed or did not validate against our published schema"
        raise ServiceError("MalformedXML", message) from error
    return [key.text or "" for key in listed.iterfind("{*}Object/{*}Key")]


def _bucket_policy(bucket: str) -> str:
    known = s3_backends[ACCOUNT_ID]["aws"].buckets.get(bucket)
    return known.policy.decode() if known is not None and known.policy else ""


_JSON_CODES = {
    "MissingAuthenticationToken": "MissingAuthenticationTokenException",
    "InvalidClientTokenId": "UnrecognizedClientException",
    "ExpiredToken": "ExpiredTokenException",
    "SignatureDoesNotMatch": "InvalidSignatureException",
    "AccessDenied": "AccessDeniedException",
}
_XML_CODES = {"AccessDeniedException": "AccessDenied"}
_S3_ANSWERS = {
    "MissingAuthenticationToken": ("AccessDenied", "Access Denied"),
    "InvalidClientTokenId": ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
}


def _as_spoken(error: ServiceError, incoming: Incoming) -> ServiceError:
    """Return the error under the name that this service and protocol have for it."""
    if incoming.service == "s3" and error.code in _S3_ANSWERS:
        return ServiceError(*_S3_ANSWERS[error.code], status=403)
    if incoming.service == "ec2" and error.code == "AccessDeniedException":
        return ServiceError("UnauthorizedOperation", error.message, error.status)
    if incoming.protocol not in JSON_PROTOCOLS:
        return ServiceError(_XML_CODES.get(error.code, error.code), error.message, error.status, error.members)
    code = _JSON_CODES.get(error.code, error.code)
    status = 400 if incoming.protocol == "json" and error.status == 403 else error.status
    return ServiceError(code, error.message, status, error.members)
