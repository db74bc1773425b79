"""Application Auto Scaling: what is registered, policies, schedules and activities.

Source: docs.aws.amazon.com/autoscaling/application/APIReference
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.listing import one_page
from opslib.rehearsal.scaling.burstable import require_steady_instances
from opslib.rehearsal.scaling.policies import alarms_of, read_rules
from opslib.rehearsal.scaling.resources import ScalableResource
from opslib.rehearsal.scaling.scaler import Scaler
from opslib.rehearsal.scaling.schedules import Schedule
from opslib.rehearsal.scaling.tags import TargetTags
from opslib.rehearsal.scaling.targets import ScalableTarget, ScalingPolicy, ScheduledAction, TargetKey
from opslib.rehearsal.site import Site

_PAGE = 50


class ScalingExtension:
    """The extension that scales what the others run."""

    def __init__(self, site: Site, resources: Sequence[ScalableResource]) -> None:
        """Take what can be scaled; nothing is registered yet."""
        self._clock, self._monitoring = site.clock, site.monitoring
        self._scaler = Scaler(site, resources)
        named = {
            "RegisterScalableTarget": self.register,
            "DeregisterScalableTarget": self.deregister,
            "DescribeScalableTargets": self.describe_targets,
            "PutScalingPolicy": self.put_policy,
            "DescribeScalingPolicies": self.describe_policies,
            "DeleteScalingPolicy": self.delete_policy,
            "PutScheduledAction": self.put_scheduled_action,
            "DescribeScheduledActions": self.describe_scheduled_actions,
            "DeleteScheduledAction": self.delete_scheduled_action,
            "DescribeScalingActivities": self.describe_activities,
            **TargetTags(self._scaler).operations,
        }
        self.operations: Mapping[str, Operation] = {
            f"application-autoscaling.{name}": operation for name, operation in named.items()
        }

    def stop(self) -> None:
        """Scale nothing any more."""
        self._scaler.stop()

    def follow_up(self) -> None:
        """Look which resources have got their capacity; it happens by itself ten times a second of the wall."""
        self._scaler.follow_up()

    def register(self, call: Call) -> dict[str, Any]:
        """Register a resource, or change the bounds of one; its capacity is brought within them."""
        key = TargetKey.of(call)
        self._require_resource(key)
        with self._scaler.lock:
            target = self._scaler.targets.get(key)
            if target is None:
                target = ScalableTarget(key, created=self._clock.now(), tags=dict(call.params.get("Tags", {})))
            target.update(call.params)
            target.is_unsettled = True
            self._scaler.add(target)
            self._scaler.settle(target)
        return {"ScalableTargetARN": target.arn}

    def deregister(self, call: Call) -> dict[str, Any]:
        """Give a target up, with its policies and schedules."""
        with self._scaler.lock:
            self._scaler.forget(self._find(call).key)
        return {}

    def describe_targets(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScalableTargets."""
        wanted = call.params.get("ResourceIds")
        found = [one for one in self._targets(call) if not wanted or one.key.resource_id in wanted]
        return _page(call, "ScalableTargets", [one.describe() for one in found])

    def put_policy(self, call: Call) -> dict[str, Any]:
        """Make or change a policy; target tracking puts its alarms."""
        name = call.params["PolicyName"]
        with self._scaler.lock:
            target = self._find(call)
            rules, known = read_rules(target.key, call.params), target.policies.get(name)
            arn, created = (known.arn, known.created) if known else (_policy_arn(target.key, name), self._clock.now())
            policy = ScalingPolicy(name, arn, dict(call.params), rules, created)
            if known is not None:
                if known.type_name != policy.type_name:
                    message = f"The type of the scaling policy {name} cannot be changed from {known.type_name}."
                    raise ServiceError("ValidationException", message)
                self._scaler.delete_alarms(call.region, known)
            for alarm in alarms_of(target.key, policy):
                self._monitoring.put_alarm(call.region, alarm)
            target.policies[name] = policy
        return {"PolicyARN": policy.arn, "Alarms": self._alarms(policy, call.region)}

    def describe_policies(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScalingPolicies."""
        wanted = call.params.get("PolicyNames")
        shown = [
            {
                "PolicyARN": policy.arn,
                "PolicyName": policy.name,
                **target.key.members,
                "PolicyType": policy.type_name,
                **policy.configuration,
                "Alarms": self._alarms(policy, call.region),
                "CreationTime": policy.created,
            }
            for target in self._targets(call)
            for policy in list(target.policies.values())
            if not wanted or policy.name in wanted or policy.arn in wanted
        ]
        return _page(call, "ScalingPolicies", shown)

    def delete_policy(self, call: Call) -> dict[str, Any]:
        """Delete a policy and the alarms that were put for it."""
        name, key = call.params["PolicyName"], TargetKey.of(call)
        with self._scaler.lock:
            target = self._scaler.targets.get(key)
            policy = target.policies.pop(name, None) if target else None
            if policy is None:
                message = f"No scaling policy found for {key}, policy name: {name}"
                raise ServiceError("ObjectNotFoundException", message)
            self._scaler.delete_alarms(call.region, policy)
        return {}

    def put_scheduled_action(self, call: Call) -> dict[str, Any]:
        """Make or change a scheduled action."""
        name, params = call.params["ScheduledActionName"], call.params
        with self._scaler.lock:
            target = self._find(call)
            known = target.schedules.get(name)
            merged = {**(known.params if known else {}), **params}
            if "Schedule" not in merged:
                raise ServiceError("ValidationException", "Schedule is required when creating a scheduled action.")
            _require_bounds(merged.get("ScalableTargetAction", {}))
            now = self._clock.now()
            schedule = Schedule.read(merged["Schedule"], merged.get("Timezone", "UTC"))
            arn = known.arn if known else _arn(target.key, "scheduledAction", f"scheduledActionName/{name}")
            action = ScheduledAction(name, arn, merged, schedule, known.created if known else now)
            action.plan_next(now)
            target.schedules[name] = action
        return {}

    def describe_scheduled_actions(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScheduledActions."""
        wanted = call.params.get("ScheduledActionNames")
        shown = [
            action.describe(target.key)
            for target in self._targets(call)
            for action in list(target.schedules.values())
            if not wanted or action.name in wanted or action.arn in wanted
        ]
        return _page(call, "ScheduledActions", shown)

    def delete_scheduled_action(self, call: Call) -> dict[str, Any]:
        """Delete a scheduled action."""
        name, key = call.params["ScheduledActionName"], TargetKey.of(call)
        with self._scaler.lock:
            target = self._scaler.targets.get(key)
            if target is None or target.schedules.pop(name, None) is None:
                message = f"No scheduled action found for {key}, scheduled action name: {name}"
                raise ServiceError("ObjectNotFoundException", message)
        return {}

    def describe_activities(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScalingActivities: the newest first; those that changed nothing only when asked for."""
        params = call.params
        with self._scaler.lock:
            found = self._scaler.log.matching(
                call.region, params["ServiceNamespace"], params.get("ResourceId"), params.get("ScalableDimension")
            )
            with_all = params.get("IncludeNotScaledActivities", False)
            shown = [one.describe() for one in found if with_all or one.reason is None]
        return _page(call, "ScalingActivities", shown)

    def _require_resource(self, key: TargetKey) -> None:
        resource = self._scaler.resources.get(key.dimension)
        if resource is None:
            raise ServiceError("NotImplemented", f"{key.dimension} cannot be rehearsed yet", status=501)
        if not key.dimension.startswith(f"{key.namespace}:"):
            message = f"Scalable dimension {key.dimension} is not supported for service namespace {key.namespace}."
            raise ServiceError("ValidationException", message)
        if resource.desired_capacity(key.region, key.resource_id) is None:
            raise ServiceError("ValidationException", f"{key.namespace} resource doesn't exist: {key.resource_id}")
        require_steady_instances(key)

    def _find(self, call: Call) -> ScalableTarget:
        key = TargetKey.of(call)
        target = self._scaler.targets.get(key)
        if target is None:
            raise ServiceError("ObjectNotFoundException", f"No scalable target registered for {key}")
        return target

    def _targets(self, call: Call) -> Iterable[ScalableTarget]:
        """Return the targets that a Describe call names by service, resource and dimension."""
        params = call.params
        with self._scaler.lock:
            return [
                one
                for one in self._scaler.targets.values()
                if (one.key.region, one.key.namespace) == (call.region, params["ServiceNamespace"])
                and params.get("ResourceId") in {None, one.key.resource_id}
                and params.get("ScalableDimension") in {None, one.key.dimension}
            ]

    def _alarms(self, policy: ScalingPolicy, region: str) -> list[dict[str, str]]:
        names = [name for name in (policy.high_alarm, policy.low_alarm) if name]
        names += [alarm["AlarmName"] for alarm in self._scaler.alarms.with_action(region, policy.arn)]
        prefix = f"arn:aws:cloudwatch:{region}:{ACCOUNT_ID}:alarm:"
        return [{"AlarmName": name, "AlarmARN": prefix + name} for name in names]


def _require_bounds(bounds: Mapping[str, int]) -> None:
    if not bounds:
        raise ServiceError("ValidationException", "ScalableTargetAction must set MinCapacity or MaxCapacity.")
    if bounds.get("MinCapacity", 0) > bounds.get("MaxCapacity", bounds.get("MinCapacity", 0)):
        raise ServiceError("ValidationException", "Maximum capacity cannot be less than minimum capacity.")


def _policy_arn(key: TargetKey, name: str) -> str:
    return _arn(key, "scalingPolicy", f"policyName/{name}")


def _arn(key: TargetKey, kind: str, end: str) -> str:
    place = f"arn:aws:autoscaling:{key.region}:{ACCOUNT_ID}:{kind}:{uuid.uuid4()}"
    return f"{place}:resource/{key.namespace}/{key.resource_id}:{end}"


def _page(call: Call, member: str, items: list[dict[str, Any]]) -> dict[str, Any]:
    page, token = one_page(items, {"MaxResults": _PAGE, **call.params})
    return {member: list(page), "NextToken": token}
