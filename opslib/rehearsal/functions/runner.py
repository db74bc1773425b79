"""Running one invocation: in an environment that is kept ready, or else in one on demand, bounded and measured."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from moto.awslambda.models import LambdaFunction

from opslib.rehearsal.functions.concurrency import Concurrency
from opslib.rehearsal.functions.environment import FunctionEnvironment, Outcome
from opslib.rehearsal.functions.metrics import FunctionMetrics, Target
from opslib.rehearsal.functions.pool import FunctionPool
from opslib.rehearsal.functions.provisioning import Provisioning

Lent = AbstractContextManager[FunctionEnvironment]
"""An environment for one invocation, that goes back when its block ends."""


@dataclass(frozen=True)
class Event:
    """What a version is to be run on, and what the caller named."""

    function: LambdaFunction
    target: Target
    request_id: str
    payload: bytes
    client_context: str = ""
    """One line of JSON."""


@dataclass(frozen=True)
class Runner:
    """Runs events: `pool_of` gives a version's environments on demand, `exists` tells whether it is deleted."""

    pool_of: Callable[[LambdaFunction], FunctionPool]
    exists: Callable[[LambdaFunction], bool]
    concurrency: Concurrency
    provisioning: Provisioning
    metrics: FunctionMetrics

    def run(self, event: Event) -> Outcome:
        """Run an event and wait for what comes of it.

        Raises:
            Throttled: as many invocations run as may.
            ServiceError: ResourceConflictException, while the function is Pending.
        """
        pool = self.pool_of(event.function)
        owner = self.provisioning.of(event.function)
        if owner is None:
            return self._run(event, pool.environment(), is_provisioned=False)
        target, provisioned = owner
        environment = provisioned.take()
        self.metrics.write_provisioned(target, busy=provisioned.busy, available=provisioned.available)
        if environment is None:
            outcome = self._run(event, pool.environment(), is_provisioned=False)
            self.metrics.count(event.target, "ProvisionedConcurrencySpilloverInvocations")
            return outcome
        try:
            return self._run(event, nullcontext(environment), is_provisioned=True)
        finally:
            provisioned.give_back(environment)

    def _run(self, event: Event, lent: Lent, *, is_provisioned: bool) -> Outcome:
        with self.concurrency.invocation(event.function, is_provisioned=is_provisioned) as running:
            self.metrics.write_running(event.target, running)
            with lent as environment:
                outcome = environment.invoke(event.request_id, event.payload, event.client_context)
        self.metrics.write_outcome(event.target, outcome, is_provisioned=is_provisioned)
        return outcome
