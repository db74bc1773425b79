"""AddTags, ListTags and DeleteTags of SageMaker's resources, which are found by their ARNs whatever their names' case.

moto keeps the tags with its records, but looks for them by the name in the ARN, which SageMaker writes in lower case,
and keeps two values of a key. Source: docs.aws.amazon.com/sagemaker/latest/APIReference/API_AddTags.html
"""

from typing import Any

from moto.sagemaker.models import sagemaker_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.listing import one_page

_MOST_TAGS = 50
_STORES = {
    "model": "_models",
    "experiment-trial": "trials",
    "experiment-trial-component": "trial_components",
    "automl-job": "auto_ml_jobs",
}
"""Where moto keeps what is not found under its kind's plural."""


class Tags:
    """The operations on tags."""

    def __init__(self) -> None:
        """Name the operations."""
        self.operations: dict[str, Operation] = {
            "sagemaker.AddTags": self.add,
            "sagemaker.ListTags": self.list,
            "sagemaker.DeleteTags": self.delete,
        }

    def add(self, call: Call) -> dict[str, Any]:
        """Give a resource tags; a key that it has already gets the new value."""
        resource = _find(call)
        tags = {tag["Key"]: tag for tag in (*(resource.tags or []), *call.params["Tags"])}
        if len(tags) > _MOST_TAGS:
            raise ServiceError("ResourceLimitExceeded", f"A resource can have {_MOST_TAGS} tags.")
        resource.tags = list(tags.values())
        return {"Tags": resource.tags}

    def list(self, call: Call) -> dict[str, Any]:
        """Return a resource's tags."""
        page, token = one_page(_find(call).tags or [], {"MaxResults": _MOST_TAGS, **call.params})
        return {"Tags": list(page), "NextToken": token}

    def delete(self, call: Call) -> dict[str, Any]:
        """Take tags from a resource, as far as it has them."""
        resource, keys = _find(call), call.params["TagKeys"]
        resource.tags = [tag for tag in resource.tags or [] if tag["Key"] not in keys]
        return {}


def _find(call: Call) -> Any:
    arn = call.params["ResourceArn"]
    kind, _, name = arn.rpartition(":")[2].partition("/")
    store = getattr(sagemaker_backends[ACCOUNT_ID][call.region], _STORES.get(kind, f"{kind.replace('-', '_')}s"), {})
    records = list(store.items()) if isinstance(store, dict) else []  # or a method of moto's
    found = next((one for known, one in records if known.lower() == name.lower()), None)
    if found is None:
        raise ServiceError("ValidationException", f'Could not find {kind} "{arn}".')
    return found[0] if isinstance(found, list) else found
