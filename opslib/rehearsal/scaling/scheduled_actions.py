"""Scheduled actions: bounds that are set at their times."""

from collections.abc import Mapping
from typing import Any

from opslib.rehearsal.calls import Call, Operation, ServiceError
from opslib.rehearsal.clock import Clock
from opslib.rehearsal.scaling.naming import arn_of, find, matching, page
from opslib.rehearsal.scaling.scaler import Scaler
from opslib.rehearsal.scaling.schedules import Schedule
from opslib.rehearsal.scaling.targets import ScheduledAction, TargetKey

_TIMES = ("StartTime", "EndTime")


class ScheduledActions:
    """Puts, shows and deletes them; the scaler runs them."""

    def __init__(self, scaler: Scaler, clock: Clock) -> None:
        """Take the one who knows the targets, and the clock."""
        self._scaler = scaler
        self._clock = clock
        self.operations: dict[str, Operation] = {
            "PutScheduledAction": self.put,
            "DescribeScheduledActions": self.describe,
            "DeleteScheduledAction": self.delete,
        }

    def put(self, call: Call) -> dict[str, Any]:
        """Make or change a scheduled action."""
        name, params = call.params["ScheduledActionName"], call.params
        with self._scaler.lock:
            target = find(self._scaler, call)
            known = target.schedules.get(name)
            # AWS keeps what is not named, but for the times: "the old values are deleted".
            kept = {name: value for name, value in (known.params if known else {}).items() if name not in _TIMES}
            merged = {**kept, **params}
            if "Schedule" not in merged:
                raise ServiceError("ValidationException", "Schedule is required when creating a scheduled action.")
            _require_bounds(merged.get("ScalableTargetAction", {}))
            if "StartTime" in merged and "EndTime" in merged and merged["EndTime"] <= merged["StartTime"]:
                raise ServiceError("ValidationException", "EndTime must be later than StartTime.")
            now = self._clock.now()
            schedule = Schedule.read(merged["Schedule"], merged.get("Timezone", "UTC"))
            arn = known.arn if known else arn_of(target.key, "scheduledAction", f"scheduledActionName/{name}")
            action = ScheduledAction(name, arn, merged, schedule, known.created if known else now)
            action.plan_next(now)
            target.schedules[name] = action
        return {}

    def describe(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScheduledActions."""
        wanted = call.params.get("ScheduledActionNames")
        shown = [
            action.describe(target.key)
            for target in matching(self._scaler, call)
            for action in list(target.schedules.values())
            if not wanted or action.name in wanted or action.arn in wanted
        ]
        return page(call, "ScheduledActions", shown)

    def delete(self, call: Call) -> dict[str, Any]:
        """Delete a scheduled action."""
        name, key = call.params["ScheduledActionName"], TargetKey.of(call)
        with self._scaler.lock:
            target = self._scaler.targets.get(key)
            if target is None or target.schedules.pop(name, None) is None:
                message = f"No scheduled action found for {key}, scheduled action name: {name}"
                raise ServiceError("ObjectNotFoundException", message)
        return {}


def _require_bounds(bounds: Mapping[str, int]) -> None:
    if not bounds:
        raise ServiceError("ValidationException", "ScalableTargetAction must set MinCapacity or MaxCapacity.")
    if min(bounds.values()) < 0:
        raise ServiceError("ValidationException", "MinCapacity and MaxCapacity must be 0 or greater.")
    if bounds.get("MinCapacity", 0) > bounds.get("MaxCapacity", bounds.get("MinCapacity", 0)):
        raise ServiceError("ValidationException", "Maximum capacity cannot be less than minimum capacity.")
