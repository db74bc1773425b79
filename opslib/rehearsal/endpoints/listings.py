"""ListEndpoints, ListEndpointConfigs and ListModels, with all of their filters, in AWS's order and pages.

Source: docs.aws.amazon.com/sagemaker/latest/APIReference (ListEndpoints, ListEndpointConfigs, ListModels).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from moto.sagemaker.models import FakeEndpoint, FakeEndpointConfig, Model, SageMakerModelBackend, sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation
from opslib.rehearsal.listing import in_order, one_page, passes_filters


@dataclass(frozen=True)
class _Entry:
    """A record as the filters see it, and as a list shows it."""

    name: str
    status: str
    creation_time: datetime
    last_modified_time: datetime
    summary: dict[str, Any]


class Listings:
    """The operations that list what hosting consists of."""

    def __init__(self) -> None:
        """Name the operations."""
        self.operations: dict[str, Operation] = {
            "sagemaker.ListEndpoints": self.list_endpoints,
            "sagemaker.ListEndpointConfigs": self.list_endpoint_configs,
            "sagemaker.ListModels": self.list_models,
        }

    def list_endpoints(self, call: Call) -> dict[str, Any]:
        """Return endpoints."""
        return _listed(call, "Endpoints", map(_endpoint_entry, list(_backend(call).endpoints.values())))

    def list_endpoint_configs(self, call: Call) -> dict[str, Any]:
        """Return endpoint configurations."""
        return _listed(call, "EndpointConfigs", map(_config_entry, list(_backend(call).endpoint_configs.values())))

    def list_models(self, call: Call) -> dict[str, Any]:
        """Return models."""
        return _listed(call, "Models", map(_model_entry, list(_backend(call)._models.values())))


def _listed(call: Call, member: str, entries: Iterable[_Entry]) -> dict[str, Any]:
    params = call.params
    chosen = [entry for entry in entries if passes_filters(entry, params)]
    ordered = in_order(chosen, params.get("SortBy", "CreationTime"), params.get("SortOrder", "Descending"))
    page, token = one_page(ordered, params)
    return {member: [entry.summary for entry in page], "NextToken": token}


def _endpoint_entry(record: FakeEndpoint) -> _Entry:
    created, modified = _utc(record.creation_time), _utc(record.last_modified_time)
    summary = {
        "EndpointName": record.endpoint_name,
        "EndpointArn": record.arn,
        "CreationTime": created,
        "LastModifiedTime": modified,
        "EndpointStatus": record.endpoint_status,
    }
    return _Entry(record.endpoint_name, record.endpoint_status, created, modified, summary)


def _config_entry(record: FakeEndpointConfig) -> _Entry:
    return _unchanging("EndpointConfig", record.endpoint_config_name, record.arn, record.creation_time)


def _model_entry(record: Model) -> _Entry:
    return _unchanging("Model", record.model_name, record.arn, record.creation_time)


def _unchanging(kind: str, name: str, arn: str, created: datetime) -> _Entry:
    summary = {f"{kind}Name": name, f"{kind}Arn": arn, "CreationTime": _utc(created)}
    return _Entry(name, "", _utc(created), _utc(created), summary)


def _utc(moment: datetime) -> datetime:
    """Return a moment with its time zone, which moto leaves out."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _backend(call: Call) -> SageMakerModelBackend:
    return sagemaker_backends[ACCOUNT_ID][call.region]
