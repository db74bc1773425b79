"""An endpoint that runs: it comes into service, is updated step by step, resized, and rolled back by alarms."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from moto.sagemaker.models import FakeEndpoint

from opslib.errors import OpslibError
from opslib.rehearsal.calls import ServiceError
from opslib.rehearsal.endpoints.fleet import Fleet
from opslib.rehearsal.endpoints.hosting import Hosting, HostingFailed, Variant
from opslib.rehearsal.endpoints.instances import ModelNotServing
from opslib.rehearsal.endpoints.metrics import LoadSampler
from opslib.rehearsal.endpoints.model_data import ModelDataFailed
from opslib.rehearsal.endpoints.rollout import Rollout
from opslib.rehearsal.endpoints.routing import TrafficRoute
from opslib.rehearsal.endpoints.serverless import ServerlessFleet
from opslib.rehearsal.site import Site

_IN_PROGRESS = frozenset({"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"})
_LOOK_EVERY_SECONDS = 0.05
"""At the alarms, on the wall."""


class RolledBack(Exception):  # noqa: N818 - it becomes a FailureReason
    """An update is taken back; the text is the FailureReason."""


class LiveEndpoint:
    """One endpoint with its record, its traffic and, during an update, the hosting that may follow."""

    def __init__(self, site: Site, region: str, record: FakeEndpoint) -> None:
        """Take the endpoint's record, which moto lists; nothing runs yet."""
        self.record = record
        self.region = region
        self.route = TrafficRoute()
        self.last_rollout: Rollout | None = None
        self._site = site
        self._pending: tuple[Hosting, datetime] | None = None
        self._phase = "Creating"
        self._closed = threading.Event()
        self._sampler = LoadSampler(site.clock, self._sampled)
        self._lock = threading.RLock()

    @property
    def hostings(self) -> Sequence[Hosting]:
        """Everything that runs or starts."""
        pending = [self._pending[0]] if self._pending else []
        return list(dict.fromkeys([*self.route.hostings, *pending]))

    @property
    def is_moving(self) -> bool:
        """Whether it is created, updated, resized or deleted at this moment."""
        return self.record.endpoint_status in _IN_PROGRESS

    def create(self, hosting: Hosting) -> None:
        """Bring the first hosting into service, in the background."""
        self._begin("Creating", hosting, lambda: self._create(hosting))

    def update(self, hosting: Hosting, rollout: Rollout) -> None:
        """Let a hosting take over as the rollout says, in the background.

        Raises:
            ServiceError: ValidationException; it cannot be updated now.
        """
        self._begin("Updating", hosting, lambda: self._update(hosting, rollout))

    def resize(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        """Change weights and numbers of instances (DesiredWeightsAndCapacities), in the background.

        Raises:
            ServiceError: ValidationException; it cannot be updated now.
        """
        with self._lock:
            self.refuse_unless_in_service()
            for change in wanted:  # what is asked for is seen at once
                fleet = self.route.current.variants[change["VariantName"]].fleet
                if isinstance(fleet, Fleet):
                    fleet.desired_count = change.get("DesiredInstanceCount", fleet.desired_count)
            self._begin("Updating", None, lambda: self._resize(wanted))

    def begin_deletion(self) -> None:
        """Take it out of service.

        Raises:
            ServiceError: ValidationException; it is being created or updated.
        """
        with self._lock:
            if self.is_moving:
                raise in_progress(self.record)
            self._set_status("Deleting")

    def close(self) -> None:
        """Kill every instance."""
        self._closed.set()
        self._sampler.stop()
        hostings = self.hostings
        self.route.put(None)
        for hosting in hostings:
            hosting.close()

    def describe(self) -> dict[str, Any]:
        """Return what DescribeEndpoint shows of what runs."""
        current, pending = self.route.hostings[:1], self._pending
        shown: dict[str, Any] = {}
        for hosting in current:
            shown = {"ProductionVariants": [one.describe() for one in hosting.variants.values()]}
            if hosting.shadows:
                shown["ShadowProductionVariants"] = [one.describe() for one in hosting.shadows.values()]
            shown |= _describe_settings(hosting)
        if pending:
            shown["PendingDeploymentSummary"] = self._describe_pending(*pending)
        if self.last_rollout and self.last_rollout.config:
            shown["LastDeploymentConfig"] = self.last_rollout.config
        return shown

    def _describe_pending(self, hosting: Hosting, started: datetime) -> dict[str, Any]:
        status = [{"Status": self._phase}]
        variants = [{**one.describe(), "VariantStatus": status} for one in hosting.variants.values()]
        return {
            "EndpointConfigName": hosting.settings.config_name,
            "ProductionVariants": variants,
            "StartTime": started,
        }

    def _begin(self, status: str, hosting: Hosting | None, work: Callable[[], None]) -> None:
        with self._lock:
            if status != "Creating":
                self.refuse_unless_in_service()
            self.record.failure_reason = None
            self._set_status(status)
            if hosting:
                self._pending, self._phase = (hosting, self._site.clock.now()), "Creating"
        threading.Thread(target=self._run, args=(work,), name="endpoint", daemon=True).start()

    def refuse_unless_in_service(self) -> None:
        """Refuse a change while another one is under way, and of an endpoint that failed.

        Raises:
            ServiceError: ValidationException.
        """
        if self.is_moving:
            raise in_progress(self.record)
        if self.record.endpoint_status != "InService":
            message = f'Cannot update endpoint "{self.record.arn}" in status {self.record.endpoint_status}.'
            raise ServiceError("ValidationException", message)

    def _run(self, work: Callable[[], None]) -> None:
        """Do the work; whatever becomes of it, the endpoint ends in a state in which it can be deleted."""
        try:
            work()
        except BaseException:
            self._fail("Request to service failed. If failure persists after retry, contact customer support.")
            raise
        finally:
            self._pending = None
            if self._closed.is_set():  # the rehearsal has ended meanwhile, and what started since must not stay
                self.close()

    def _create(self, hosting: Hosting) -> None:
        try:
            hosting.start()
        except (HostingFailed, OpslibError) as error:
            self._fail(str(error))
            return
        self.route.put(hosting)
        self._sampler.start()
        self._pending = None
        self._set_status("InService")

    def _update(self, hosting: Hosting, rollout: Rollout) -> None:
        try:
            hosting.start()
            self._shift(hosting, rollout)
        except (HostingFailed, OpslibError, RolledBack) as error:
            self._roll_back(hosting, str(error))
            return
        old = self.route.put(hosting)
        self.last_rollout = rollout
        self.record.endpoint_config_name = hosting.settings.config_name
        self._pending = None
        self._set_status("InService")
        if old is not None:
            old.retire()

    def _shift(self, hosting: Hosting, rollout: Rollout) -> None:
        """Give the new instances their shares of the traffic, one after the other.

        Raises:
            RolledBack: an alarm of the rollout is in ALARM, or its time is over.
        """
        clock = self._site.clock
        ends_at = clock.time() + rollout.max_seconds
        for step in rollout.steps:
            self._refuse_alarms(rollout)
            self._phase = "ActivatingTraffic"
            self.route.share(hosting, step.share)
            self._phase = "Baking"
            baked_at = clock.time() + step.bake_seconds
            while clock.time() < baked_at and not self._closed.is_set():
                time.sleep(min(_LOOK_EVERY_SECONDS, max(0.001, clock.wall_seconds(baked_at - clock.time()))))
                self._refuse_alarms(rollout)
                if clock.time() > ends_at:
                    raise RolledBack("The deployment was rolled back: it exceeded MaximumExecutionTimeoutInSeconds.")

    def _refuse_alarms(self, rollout: Rollout) -> None:
        state_of = self._site.monitoring.alarm_state
        tripped = [name for name in rollout.alarms if state_of(self.region, name) == "ALARM"]
        if tripped:
            raise RolledBack(
                f"The deployment was rolled back: alarm(s) [{', '.join(tripped)}] of AutoRollbackConfiguration "
                "went into ALARM state."
            )

    def _roll_back(self, hosting: Hosting, reason: str) -> None:
        """Give all traffic back to the old instances and take the new ones away, once they have answered."""
        self.record.failure_reason = reason
        self._set_status("RollingBack")
        self._phase = "Deleting"
        self.route.take_back()
        hosting.retire()
        self._pending = None
        self._set_status("InService")

    def _resize(self, wanted: Sequence[Mapping[str, Any]]) -> None:
        current = self.route.current
        try:
            for change in wanted if current else ():
                _change(current.variants[change["VariantName"]], change)
        except (ModelNotServing, ModelDataFailed, OpslibError) as error:
            self.record.failure_reason = f"New instances did not come into service: {error}"
        self._set_status("InService")

    def _fail(self, reason: str) -> None:
        self.record.failure_reason = reason
        self._set_status("InService" if self.route.current else "Failed")

    def _set_status(self, status: str) -> None:
        self.record.last_modified_time = datetime.now(UTC)
        self.record.endpoint_status = status

    def _sampled(self) -> list[tuple[Any, object]]:
        return [(one.metrics, one.fleet) for hosting in self.route.hostings for one in hosting.everything]


def _change(variant: Variant, change: Mapping[str, Any]) -> None:
    variant.weight = change.get("DesiredWeight", variant.weight)
    if "ServerlessUpdateConfig" in change and isinstance(variant.fleet, ServerlessFleet):
        variant.fleet.reconfigure(change["ServerlessUpdateConfig"])
        return
    count = change.get("DesiredInstanceCount", variant.fleet.count)
    if count != variant.fleet.count:
        variant.fleet.resize(count)


def _describe_settings(hosting: Hosting) -> dict[str, Any]:
    shown: dict[str, Any] = {}
    if hosting.async_config:
        shown["AsyncInferenceConfig"] = hosting.async_config
    capture = hosting.settings.capture_config
    if capture:
        is_on = capture.get("EnableCapture", True)
        shown["DataCaptureConfig"] = {
            "EnableCapture": is_on,
            "CaptureStatus": "Started" if is_on else "Stopped",
            "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
            "DestinationS3Uri": capture["DestinationS3Uri"],
            "KmsKeyId": capture.get("KmsKeyId", ""),
        }
    return shown


def in_progress(record: FakeEndpoint) -> ServiceError:
    """Return the refusal of a change while another one is under way."""
    return ServiceError("ValidationException", f'Cannot update in-progress endpoint "{record.arn}".')
