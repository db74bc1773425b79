"""Scaling activities: what was scaled or not, when and why, in AWS's words.

Source: docs.aws.amazon.com/autoscaling/application/userguide/application-auto-scaling-scaling-activities.html
"""

import uuid
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from opslib import scaling_rules as rules
from opslib.rehearsal.scaling.targets import TargetKey

_NOUNS = {
    "sagemaker:variant:DesiredInstanceCount": "desired instance count",
    "lambda:function:ProvisionedConcurrency": "provisioned concurrency",
}
_KEPT = 2000
"""Of one target; AWS keeps six weeks of them."""

ATTEMPT = "Attempting to scale due to alarm triggered"


@dataclass
class Activity:
    """One scaling activity; without an end it is in progress."""

    key: TargetKey
    description: str
    cause: str
    started: datetime
    status: str
    message: str = ""
    ended: datetime | None = None
    reason: dict[str, Any] | None = None
    before: int = 0
    after: int = 0
    cooldown_seconds: float = 0.0
    activity_id: str = field(default_factory=lambda: str(uuid.uuid4()))

    @property
    def is_in_progress(self) -> bool:
        """Whether its end is still awaited."""
        return self.status == "InProgress"

    def succeed(self, at: datetime) -> None:
        """End it: the resource has the capacity."""
        self._end("Successful", f"{_set(self.key, self.after)} Change successfully fulfilled by {self._service}.", at)

    def be_overridden(self, capacity: int, at: datetime) -> None:
        """End it: somebody else has set another capacity meanwhile."""
        said = f"A scaling change initiated outside of Auto Scaling set the capacity to {capacity}."
        self._end("Overridden", said, at)

    def leave_unfulfilled(self, at: datetime) -> None:
        """End it: the resource is gone, or did not get there."""
        self._end("Unfulfilled", f"{_set(self.key, self.after)} The change was not fulfilled by {self._service}.", at)

    def describe(self) -> dict[str, Any]:
        """Return what DescribeScalingActivities shows."""
        shown = {
            "ActivityId": self.activity_id,
            **self.key.members,
            "Description": self.description,
            "Cause": self.cause,
            "StartTime": self.started,
            "EndTime": self.ended,
            "StatusCode": self.status,
            "StatusMessage": self.message or None,
            "NotScaledReasons": [self.reason] if self.reason else None,
        }
        return {name: value for name, value in shown.items() if value is not None}

    def _end(self, status: str, message: str, at: datetime) -> None:
        self.status, self.message, self.ended = status, message, at

    @property
    def _service(self) -> str:
        return self.key.namespace


def capacity_change(key: TargetKey, before: int, after: int, cause: str, at: datetime) -> Activity:
    """Begin an activity that sets a capacity."""
    message = f"{_set(key, after)} Waiting for change to be fulfilled by {key.namespace}."
    description = f"Setting {_noun(key)} to {after}."
    return Activity(key, description, cause, at, "InProgress", message, before=before, after=after)


def refused_change(key: TargetKey, after: int, cause: str, reason: str, at: datetime) -> Activity:
    """Tell of a capacity that the resource's service did not take."""
    message = f"Failed to set {_noun(key)} to {after}. Reason: {reason}"
    return Activity(key, f"Setting {_noun(key)} to {after}.", cause, at, "Failed", message, ended=at)


def not_scaled(key: TargetKey, cause: str, code: str, capacity: int, bounds: rules.Bounds, at: datetime) -> Activity:
    """Tell why an alarm that rings has changed nothing."""
    reason: dict[str, Any] = {"Code": code}
    if code == rules.AT_MAXIMUM:
        reason["MaxCapacity"] = bounds.maximum
    elif code == rules.AT_MINIMUM:
        reason["MinCapacity"] = bounds.minimum
    else:
        reason["CurrentCapacity"] = capacity
    return Activity(key, ATTEMPT, cause, at, "Failed", ended=at, reason=reason)


def bounds_change(key: TargetKey, bounds: rules.Bounds, action_name: str, at: datetime) -> Activity:
    """Tell of a scheduled action that has set the bounds."""
    said = f"min capacity to {bounds.minimum} and max capacity to {bounds.maximum}"
    cause = f"scheduled action name {action_name} was triggered"
    return Activity(key, f"Setting {said}", cause, at, "Successful", f"Successfully set {said}", ended=at)


class ActivityLog:
    """The activities of every target, oldest first."""

    def __init__(self) -> None:
        """Start with none."""
        self._of: dict[TargetKey, deque[Activity]] = {}

    def add(self, activity: Activity) -> None:
        """Keep an activity; one that says what the last one said, too, is not said again."""
        kept = self._of.setdefault(activity.key, deque(maxlen=_KEPT))
        if activity.reason and kept and (kept[-1].reason, kept[-1].cause) == (activity.reason, activity.cause):
            return
        kept.append(activity)

    def in_progress(self) -> list[Activity]:
        """Return the activities whose end is awaited."""
        return [one for kept in list(self._of.values()) for one in list(kept) if one.is_in_progress]

    def matching(self, region: str, namespace: str, resource_id: str | None, dimension: str | None) -> list[Activity]:
        """Return the activities of a service, or of a resource of it; newest first."""
        found = [
            one
            for key, kept in list(self._of.items())
            for one in list(kept)
            if (key.region, key.namespace) == (region, namespace)
            and resource_id in {None, key.resource_id}
            and dimension in {None, key.dimension}
        ]
        # Of those that began at the same time the later is the newer, too.
        return sorted(found, key=lambda one: one.started)[::-1]


def _noun(key: TargetKey) -> str:
    return _NOUNS.get(key.dimension, "desired capacity")


def _set(key: TargetKey, count: int) -> str:
    return f"Successfully set {_noun(key)} to {count}."
