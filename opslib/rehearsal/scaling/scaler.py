"""What scales: acts on alarms and schedules, and follows each activity to its end."""

import logging
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.scaling.activities import (
    Activity,
    ActivityLog,
    bounds_change,
    capacity_change,
    not_scaled,
    refused_change,
)
from opslib.rehearsal.scaling.alarms import Alarms
from opslib.rehearsal.scaling.policies import metric_of
from opslib.rehearsal.scaling.resources import ScalableResource
from opslib.rehearsal.scaling.targets import ScalableTarget, ScalingPolicy, ScheduledAction, TargetKey
from opslib.rehearsal.site import Site
from opslib.scaling_rules import COOLING_DOWN, SUSPENDED, UNSCALABLE, Ring, TargetTracking, agreed, decide

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.1
"""Of the wall: how often schedules and activities are looked at."""


@dataclass(frozen=True)
class _Heard:
    """An alarm that rings, of which policy."""

    ring: Ring
    alarm_name: str
    policy_name: str
    measured: datetime

    @property
    def cause(self) -> str:
        return f"monitor alarm {self.alarm_name} in state ALARM triggered policy {self.policy_name}"


class Scaler:
    """Scales the targets that are registered."""

    def __init__(self, site: Site, resources: Sequence[ScalableResource]) -> None:
        """Listen to alarms; nothing is registered yet."""
        self._clock = site.clock
        self._monitoring = site.monitoring
        self.alarms = Alarms(site.monitoring)
        self.resources = {one.dimension: one for one in resources}
        self.targets: dict[TargetKey, ScalableTarget] = {}
        self.log = ActivityLog()
        self.lock = threading.RLock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        site.monitoring.on_alarm(self.hear)

    def add(self, target: ScalableTarget) -> None:
        """Take a target under control."""
        with self.lock:
            self.targets[target.key] = target
            if self._thread is None and not self._stopped.is_set():
                self._thread = threading.Thread(target=self._run, name="scaling", daemon=True)
                self._thread.start()

    def forget(self, key: TargetKey) -> None:
        """Give a target up; its policies' alarms go with it."""
        with self.lock:
            target = self.targets.pop(key, None)
            for policy in target.policies.values() if target else ():
                self.delete_alarms(key.region, policy)

    def delete_alarms(self, region: str, policy: ScalingPolicy) -> None:
        """Delete the alarms that were put for a policy."""
        for name in (policy.high_alarm, policy.low_alarm):
            if name:
                self._monitoring.delete_alarm(region, name)

    def stop(self) -> None:
        """Scale nothing any more."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def hear(self, region: str, alarm_name: str, state: str, at: datetime) -> None:
        """Act on an alarm that is in ALARM; the others ask for nothing."""
        if state != "ALARM" or self._stopped.is_set():
            return
        with self.lock:
            self.follow_up()
            for target in [one for one in self.targets.values() if one.key.region == region]:
                heard = self._ringing(target, at)
                # An alarm may be told of more often than its metric changes: each value is acted on once.
                for one in heard:
                    if one.alarm_name == alarm_name and target.acted_on.get(alarm_name) != one.measured:
                        target.acted_on[alarm_name] = one.measured
                        self._act(target, heard, one.cause, at)

    def settle(self, target: ScalableTarget) -> None:
        """Bring the capacity within its bounds, as after a change of these; later, when it is moving."""
        with self.lock:
            resource = self.resources[target.key.dimension]
            capacity = resource.desired_capacity(target.key.region, target.key.resource_id)
            if capacity is None or resource.is_moving(target.key.region, target.key.resource_id):
                return
            target.is_unsettled = False
            wanted = target.bounds.around(capacity)
            if wanted != capacity:
                side = "minimum" if wanted > capacity else "maximum"
                self._set(target, capacity, wanted, f"{side} capacity was set to {wanted}")

    def follow_up(self) -> None:
        """End the activities whose resource has arrived; its cooldown begins then."""
        with self.lock:
            for activity in self.log.in_progress():
                self._follow(activity, self._clock.now())

    def _ringing(self, target: ScalableTarget, at: datetime) -> list[_Heard]:
        """Return the alarms of a target's policies that ring now."""
        heard: list[_Heard] = []
        for policy in target.policies.values():
            region = target.key.region
            if isinstance(policy.rules, TargetTracking):
                metric = metric_of(target.key, policy.configuration["TargetTrackingScalingPolicyConfiguration"])
                named = [(policy.high_alarm, metric, True), (policy.low_alarm, metric, False)]
            else:
                alarms = self.alarms.with_action(region, policy.arn)
                named = [(alarm["AlarmName"], alarm, None) for alarm in alarms]
            heard.extend(self._hear_each(region, policy, named, at))
        return heard

    def _hear_each(
        self, region: str, policy: ScalingPolicy, named: Iterable[tuple[str, Any, bool | None]], at: datetime
    ) -> Iterable[_Heard]:
        for name, metric, is_high in named:
            if not self.alarms.is_ringing(region, name):
                continue
            newest = self.alarms.newest_value(region, metric, at)
            if newest is not None:
                measured, value = newest
                distance = value if is_high is not None else value - metric["Threshold"]
                yield _Heard(Ring(policy.rules, distance, is_high), name, policy.name, measured)

    def _act(self, target: ScalableTarget, heard: list[_Heard], cause: str, at: datetime) -> None:
        """Scale as the rules say, or say why not."""
        key, resource = target.key, self.resources[target.key.dimension]
        capacity = resource.desired_capacity(key.region, key.resource_id)
        rings = agreed([one.ring for one in heard], [policy.rules for policy in target.policies.values()])
        if capacity is None or not rings:
            return
        if resource.is_moving(key.region, key.resource_id):
            if not any(one.key == key for one in self.log.in_progress()):
                self.log.add(not_scaled(key, cause, UNSCALABLE, capacity, target.bounds, at))
            return
        decision = decide(rings, capacity, target.bounds, target.cooldowns, at.timestamp())
        decisive = next(one for one in heard if one.ring is decision.ring)
        if decision.capacity != capacity:
            rest = decisive.ring.policy.cooldown_seconds(out=decision.capacity > capacity)
            self._set(target, capacity, decision.capacity, decisive.cause, rest)
        elif decision.reason not in {COOLING_DOWN, SUSPENDED}:
            self.log.add(not_scaled(key, decisive.cause, decision.reason, capacity, target.bounds, at))

    def _set(self, target: ScalableTarget, before: int, after: int, cause: str, rest_seconds: float = 0) -> None:
        key, now = target.key, self._clock.now()
        try:
            self.resources[key.dimension].set_capacity(key.region, key.resource_id, after)
        except ServiceError as error:
            self.log.add(refused_change(key, after, cause, error.message, now))
            return
        activity = capacity_change(key, before, after, cause, now)
        activity.cooldown_seconds = rest_seconds
        self.log.add(activity)
        self.follow_up()

    def look_after(self, target: ScalableTarget) -> None:
        """Do what is due; give a target up whose resource is gone, as deleting an endpoint does."""
        key = target.key
        with self.lock:
            now = self._clock.now()
            if self.resources[key.dimension].desired_capacity(key.region, key.resource_id) is None:
                self.forget(key)
                return
            for action in target.schedules.values():
                if action.next_at is not None and action.next_at <= now:
                    self._run_scheduled(target, action, now)
            if target.is_unsettled:
                self.settle(target)

    def _follow(self, activity: Activity, now: datetime) -> None:
        key = activity.key
        resource, target = self.resources[key.dimension], self.targets.get(key)
        capacity = resource.desired_capacity(key.region, key.resource_id)
        if capacity is None:
            activity.leave_unfulfilled(now)
        elif capacity != activity.after:
            activity.be_overridden(capacity, now)
        elif not resource.is_moving(key.region, key.resource_id):
            activity.succeed(now)
            if target is not None:
                _rest(target, activity, now)

    def _run(self) -> None:
        while not self._stopped.wait(_TICK_SECONDS):
            with self.lock:
                self.follow_up()
                for target in list(self.targets.values()):
                    self.look_after(target)

    def _run_scheduled(self, target: ScalableTarget, action: ScheduledAction, now: datetime) -> None:
        action.plan_next(now)
        if target.suspended["ScheduledScalingSuspended"]:
            return
        try:
            target.update(action.params.get("ScalableTargetAction", {}))
        except ServiceError as error:
            logger.warning("scheduled action %s of %s: %s", action.name, target.key.resource_id, error)
            return
        self.log.add(bounds_change(target.key, target.bounds, action.name, now))
        target.is_unsettled = True


def _rest(target: ScalableTarget, activity: Activity, now: datetime) -> None:
    seconds, at = activity.cooldown_seconds, now.timestamp()
    target.cooldowns = target.cooldowns.after(activity.before, activity.after, seconds, at)
