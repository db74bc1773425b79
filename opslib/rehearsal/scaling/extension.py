"""Application Auto Scaling: what is registered, policies, schedules and activities.

Source: docs.aws.amazon.com/autoscaling/application/APIReference
"""

from collections.abc import Mapping, Sequence
from typing import Any

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.scaling.burstable import require_steady_instances
from opslib.rehearsal.scaling.naming import arn_of, find, matching, page
from opslib.rehearsal.scaling.policies import alarms_of, read_rules, require_own_metric
from opslib.rehearsal.scaling.resources import ScalableResource
from opslib.rehearsal.scaling.scaler import Scaler
from opslib.rehearsal.scaling.scheduled_actions import ScheduledActions
from opslib.rehearsal.scaling.tags import TargetTags
from opslib.rehearsal.scaling.targets import ScalableTarget, ScalingPolicy, TargetKey
from opslib.rehearsal.site import Site

_POLICIES_PAGE = 10


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
            "DescribeScalingActivities": self.describe_activities,
            **ScheduledActions(self._scaler, site.clock).operations,
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
            if target is not None and call.params.get("Tags"):
                message = (
                    "The scalable target that you tried to tag already exists. To update tags on an existing scalable "
                    "target, use the TagResource API."
                )
                raise ServiceError("ValidationException", message)
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
            self._scaler.forget(find(self._scaler, call).key)
        return {}

    def describe_targets(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScalableTargets."""
        wanted = call.params.get("ResourceIds")
        found = [one for one in matching(self._scaler, call) if not wanted or one.key.resource_id in wanted]
        return page(call, "ScalableTargets", [one.describe() for one in found])

    def put_policy(self, call: Call) -> dict[str, Any]:
        """Make or change a policy; target tracking puts its alarms."""
        name = call.params["PolicyName"]
        with self._scaler.lock:
            target = find(self._scaler, call)
            known = target.policies.get(name)
            params = {**({"PolicyType": known.type_name} if known else {}), **call.params}
            rules = read_rules(target.key, params)
            arn = known.arn if known else arn_of(target.key, "scalingPolicy", f"policyName/{name}")
            created = known.created if known else self._clock.now()
            policy = ScalingPolicy(name, arn, params, rules, created)
            if known is not None and known.type_name != policy.type_name:
                message = f"The type of the scaling policy {name} cannot be changed from {known.type_name}."
                raise ServiceError("ValidationException", message)
            require_own_metric(policy, target.policies.values())
            self._put_alarms(target.key, policy)
            if known is not None:
                self._scaler.delete_alarms(call.region, known)
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
            for target in matching(self._scaler, call)
            for policy in list(target.policies.values())
            if not wanted or policy.name in wanted or policy.arn in wanted
        ]
        return page(call, "ScalingPolicies", shown, most=_POLICIES_PAGE)

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

    def describe_activities(self, call: Call) -> dict[str, Any]:
        """Answer DescribeScalingActivities: the newest first; those that changed nothing only when asked for."""
        params = call.params
        with self._scaler.lock:
            found = self._scaler.log.matching(
                call.region, params["ServiceNamespace"], params.get("ResourceId"), params.get("ScalableDimension")
            )
            with_all = params.get("IncludeNotScaledActivities", False)
            shown = [one.describe() for one in found if with_all or one.reason is None]
        return page(call, "ScalingActivities", shown)

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

    def _put_alarms(self, key: TargetKey, policy: ScalingPolicy) -> None:
        try:
            for alarm in alarms_of(key, policy):
                self._monitoring.put_alarm(key.region, alarm)
        except ServiceError as error:  # e.g. metric math that CloudWatch does not take
            self._scaler.delete_alarms(key.region, policy)
            raise ServiceError("ValidationException", error.message) from error

    def _alarms(self, policy: ScalingPolicy, region: str) -> list[dict[str, str]]:
        names = [name for name in (policy.high_alarm, policy.low_alarm) if name]
        names += [alarm["AlarmName"] for alarm in self._scaler.alarms.with_action(region, policy.arn)]
        prefix = f"arn:aws:cloudwatch:{region}:{ACCOUNT_ID}:alarm:"
        return [{"AlarmName": name, "AlarmARN": prefix + name} for name in names]
