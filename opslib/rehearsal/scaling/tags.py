"""Tags of scalable targets."""

from typing import Any

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.scaling.scaler import Scaler
from opslib.rehearsal.scaling.targets import ScalableTarget

_MOST_TAGS = 50


class TargetTags:
    """Tags, untags and lists."""

    def __init__(self, scaler: Scaler) -> None:
        """Take the one who knows the targets."""
        self._scaler = scaler
        self.operations: dict[str, Operation] = {
            "TagResource": self.tag,
            "UntagResource": self.untag,
            "ListTagsForResource": self.list,
        }

    def tag(self, call: Call) -> dict[str, Any]:
        """Add or change tags."""
        with self._scaler.lock:
            target = self._find(call)
            tags = {**target.tags, **call.params["Tags"]}
            if len(tags) > _MOST_TAGS:
                message = f"A scalable target can have at most {_MOST_TAGS} tags."
                raise ServiceError("TooManyTagsException", message)
            target.tags = tags
        return {}

    def untag(self, call: Call) -> dict[str, Any]:
        """Take tags away."""
        with self._scaler.lock:
            tags = self._find(call).tags
            for name in call.params["TagKeys"]:
                tags.pop(name, None)
        return {}

    def list(self, call: Call) -> dict[str, Any]:
        """Answer ListTagsForResource."""
        with self._scaler.lock:
            return {"Tags": dict(self._find(call).tags)}

    def _find(self, call: Call) -> ScalableTarget:
        arn = call.params["ResourceARN"]
        for target in self._scaler.targets.values():
            if target.arn == arn:
                return target
        raise ServiceError("ResourceNotFoundException", f"The resource {arn} was not found.")
