"""A request as it came: who signed it, which service and operation it is for, and in which protocol it speaks."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, lru_cache
from typing import Any
from urllib.parse import parse_qs, unquote

from botocore.exceptions import UnknownServiceError
from moto.core.model import OperationModel, ServiceModel
from moto.core.routing import get_service_router
from moto.core.utils import get_service_model
from moto.moto_server.werkzeug_app import BackendRequest
from werkzeug.exceptions import NotFound

from opslib.rehearsal.gateway.signatures import Signature, SignedRequest, read_signature

_SIGNED_AS = {"monitoring": "cloudwatch", "tagging": "resourcegroupstaggingapi"}


@cache
def service_model(service: str) -> ServiceModel | None:
    """Return botocore's model of a service, or None when it has none of that name."""
    try:
        return get_service_model(service)
    except UnknownServiceError:
        return None


@lru_cache(maxsize=4096)
def operation_model(service: str, operation: str) -> OperationModel | None:
    """Return botocore's model of an operation, or None when the service has none of that name."""
    model = service_model(service)
    return model.operation_model(operation) if model and operation in model.operation_names else None


class RequestHeaders(Mapping[str, str]):
    """A request's headers, by any spelling of their names."""

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._values = {
            name.removeprefix("HTTP_").replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_") or name in {"CONTENT_TYPE", "CONTENT_LENGTH"}
        }

    def __getitem__(self, name: str) -> str:
        """Return a header's value."""
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        """Go over the names, in lower case."""
        return iter(self._values)

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        """Return whether there is a header of this name."""
        return isinstance(name, str) and name.lower() in self._values

    def get(self, name: str, default: Any = None) -> Any:
        """Return a header's value, or the default."""
        return self._values.get(name.lower(), default)


_MOST_ROUTES = 4096
_routes: dict[tuple[str, str, str], tuple[str, Mapping[str, str]]] = {}
"""Routes by service, method and address: to find one takes longer than all other work for an invocation."""


def _find_route(service: str, environ: Mapping[str, Any]) -> tuple[str, Mapping[str, str]]:
    try:
        operation, parameters = get_service_router(service).match(BackendRequest(dict(environ)))
    except (NotFound, NotImplementedError):
        return "", {}
    return str(operation.name), parameters


@dataclass
class Incoming:
    """A request as it came, and what can be said of it without knowing any service."""

    environ: dict[str, Any]
    body: bytes
    request_id: str
    arrived: float = field(default_factory=time.perf_counter)

    @cached_property
    def headers(self) -> Mapping[str, str]:
        """The headers, by any spelling of their names."""
        return RequestHeaders(self.environ)

    @cached_property
    def signed(self) -> SignedRequest:
        """The parts that a signature covers."""
        path, _, query = self.environ["REQUEST_URI"].partition("?")
        return SignedRequest(self.environ["REQUEST_METHOD"], path, query, self.headers, self.body)

    @cached_property
    def signature(self) -> Signature | None:
        """The signature, not yet verified."""
        return read_signature(self.signed)

    @cached_property
    def query(self) -> dict[str, list[str]]:
        """The query's values by name."""
        return parse_qs(self.signed.query, keep_blank_values=True)

    @cached_property
    def form(self) -> dict[str, str]:
        """The fields of a form body (the query protocol), the first value of each."""
        if not self.headers.get("Content-Type", "").startswith("application/x-www-form-urlencoded"):
            return {}
        return {name: values[0] for name, values in parse_qs(self.body.decode("utf-8", "replace")).items()}

    @cached_property
    def service(self) -> str:
        """The service's name in botocore; "s3" for requests that do not say."""
        if self.signature is None:
            return "s3" if "X-Amz-Target" not in self.headers and not self.form else "sts"
        name = self.signature.service
        if name == "sagemaker" and self.signed.path.startswith("/endpoints/"):
            return "sagemaker-runtime"
        return _SIGNED_AS.get(name, name)

    @cached_property
    def protocol(self) -> str:
        """The wire protocol that the client speaks."""
        if self.headers.get("smithy-protocol") == "rpc-v2-cbor":
            return "smithy-rpc-v2-cbor"
        if "X-Amz-Target" in self.headers:
            return "json"
        if self.form:
            return "query"
        model = service_model(self.service)
        return str(model.protocol) if model else "json"

    @cached_property
    def route(self) -> tuple[str, Mapping[str, str]]:
        """The operation's name and the parameters in the path; ("", {}) when the service has no such operation."""
        target = self.headers.get("X-Amz-Target")
        if target:
            return target.rpartition(".")[2], {}
        if self.protocol == "smithy-rpc-v2-cbor":
            return self.signed.path.rpartition("/")[2], {}
        if self.form:
            return self.form.get("Action", ""), {}
        if service_model(self.service) is None:
            return "", {}
        return self._rest_route()

    def _rest_route(self) -> tuple[str, Mapping[str, str]]:
        if self.service == "s3":  # where headers have a say
            return _find_route(self.service, self.environ)
        key = (self.service, self.environ["REQUEST_METHOD"], self.environ["REQUEST_URI"])
        if key not in _routes:
            if len(_routes) >= _MOST_ROUTES:
                _routes.clear()
            _routes[key] = _find_route(self.service, self.environ)
        return _routes[key]

    @property
    def operation(self) -> str:
        """The operation's name."""
        return self.route[0]

    @property
    def bucket_and_key(self) -> tuple[str, str]:
        """The bucket and the key of an S3 request (path style)."""
        bucket, _, key = unquote(self.signed.path.lstrip("/")).partition("/")
        return bucket, key
