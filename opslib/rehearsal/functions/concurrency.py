"""How many invocations of a function may run at once: reserved concurrency, and the account's pool for the others.

Sources: docs.aws.amazon.com/lambda/latest/dg/lambda-concurrency.html and configuration-concurrency.html.
"""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError
from opslib.rehearsal.functions.metrics import Running, Target

ACCOUNT_CONCURRENCY = 1000
"""Concurrent executions of an account and region, the default quota."""

MIN_UNRESERVED_CONCURRENCY = 100
"""What Lambda always keeps for the functions that reserve nothing."""


REQUESTS_PER_CONCURRENCY = 10
"""Synchronous requests a second that each unit of concurrency answers: Lambda's quota, however short they are."""


class Throttled(Exception):  # noqa: N818 - it becomes TooManyRequestsException
    """As many invocations run as may, or as many were asked for in this second; `reason` is Lambda's word for it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Concurrency:
    """The concurrency of every function: what is set aside, what runs now, and the operations that reserve."""

    def __init__(self, find: Callable[[Call], LambdaFunction]) -> None:
        """Take what finds the function of a call."""
        self._find = find
        self._on_demand: Counter[tuple[str, str]] = Counter()
        self._running: Counter[tuple[str, str]] = Counter()
        self._provisioned: dict[Target, int] = {}
        self._requests: dict[tuple[str, str], tuple[float, float]] = {}
        self._lock = threading.Lock()
        self.operations: dict[str, Operation] = {
            "lambda.PutFunctionConcurrency": self.put_function_concurrency,
            "lambda.GetFunctionConcurrency": self.get_function_concurrency,
            "lambda.DeleteFunctionConcurrency": self.delete_function_concurrency,
        }

    def count_request(self, function: LambdaFunction) -> None:
        """Take one synchronous request from those that a function may have in a second.

        They come back evenly; up to a second's worth may come at once. Only a reservation is small enough to matter.

        Raises:
            Throttled: there is none left.
        """
        key = (function.region, function.function_name)
        with self._lock:
            reserved = reservations(function.region).get(function.function_name)
            if reserved is None:
                return
            most, now = float(reserved * REQUESTS_PER_CONCURRENCY), time.monotonic()
            left, last = self._requests.get(key, (most, now))
            left = min(most, left + (now - last) * most)
            self._requests[key] = (left - 1 if left >= 1 else left, now)
        if left < 1:
            raise Throttled(f"ReservedFunction{'InvocationRate' if reserved else 'ConcurrentInvocation'}LimitExceeded")

    @contextmanager
    def invocation(self, function: LambdaFunction, *, is_provisioned: bool) -> Iterator[Running]:
        """Count one invocation of any of a function's versions while the block runs; gives how many run with it.

        What is provisioned is set aside already, so that only the others are bounded.

        Raises:
            Throttled: as many as may run already.
        """
        key = (function.region, function.function_name)
        with self._lock:
            everyones = reservations(function.region)
            reserved = everyones.get(function.function_name)
            if not is_provisioned and self._free(*key, reserved) <= 0:
                owner = "" if reserved is None else "ReservedFunction"
                raise Throttled(f"{owner}ConcurrentInvocationLimitExceeded")
            self._on_demand[key] += not is_provisioned
            self._running[key] += 1
            running = Running(
                self._running[key],
                _unreserved(self._running, function.region, {}),
                _unreserved(self._running, function.region, everyones),
                self._claimed(function.region, everyones),
            )
        try:
            yield running
        finally:
            with self._lock:
                self._on_demand[key] -= not is_provisioned
                self._running[key] -= 1

    def is_shut_off(self, function: LambdaFunction) -> bool:
        """Return whether nothing is reserved for a function: it is not to run at all."""
        return reservations(function.region).get(function.function_name) == 0

    def set_aside(self, target: Target, count: int) -> None:
        """Set concurrency aside for what a version or alias has provisioned, in place of what it had.

        Raises:
            ServiceError: InvalidParameterValueException; it is more than the function or the account has.
        """
        with self._lock:
            reserved_now = reservations(target.region)
            others = self._set_aside(target.region, target.name) - self._provisioned.get(target, 0)
            reserved = reserved_now.get(target.name)
            if reserved is None:
                shared = self._shared_provisioned(target.region, reserved_now) - self._provisioned.get(target, 0)
                left = ACCOUNT_CONCURRENCY - sum(reserved_now.values()) - shared - count
                _require_unreserved(left, "ConcurrentExecutions")
            elif others + count > reserved:
                raise ServiceError(
                    "InvalidParameterValueException",
                    "Requested Provisioned Concurrency should not be greater than the reservedConcurrentExecution for "
                    "function",
                )
            self._provisioned[target] = count

    def give_back(self, target: Target) -> None:
        """Set nothing aside any more for a version or alias."""
        with self._lock:
            self._provisioned.pop(target, None)

    def put_function_concurrency(self, call: Call) -> dict[str, Any]:
        """Reserve concurrency: the function has as much for itself, and no more."""
        function, wanted = self._find(call), call.params["ReservedConcurrentExecutions"]
        with self._lock:
            others = reservations(call.region)
            others.pop(function.function_name, None)
            provisioned = self._set_aside(call.region, function.function_name)
            if wanted < provisioned:
                raise ServiceError(
                    "InvalidParameterValueException",
                    f"ReservedConcurrentExecutions  {wanted} should not be lower than function's total provisioned "
                    f"concurrency [{provisioned}].",
                )
            shared = self._shared_provisioned(call.region, {**others, function.function_name: wanted})
            left = ACCOUNT_CONCURRENCY - sum(others.values()) - shared - wanted
            _require_unreserved(left, "ReservedConcurrentExecutions")
            function.reserved_concurrency = wanted
        return {"ReservedConcurrentExecutions": wanted}

    def get_function_concurrency(self, call: Call) -> dict[str, Any]:
        """Return the reserved concurrency; nothing when none is reserved."""
        return {"ReservedConcurrentExecutions": self._find(call).reserved_concurrency}

    def delete_function_concurrency(self, call: Call) -> dict[str, Any]:
        """Reserve nothing any more."""
        self._find(call).reserved_concurrency = None
        return {}

    def _free(self, region: str, name: str, reserved: int | None) -> int:
        if reserved is not None:
            return reserved - self._set_aside(region, name) - self._on_demand[region, name]
        return ACCOUNT_CONCURRENCY - self._claimed(region, reservations(region))

    def _claimed(self, region: str, reserved: Mapping[str, int]) -> int:
        """Return what is not there for further invocations of functions that reserve nothing."""
        shared = self._shared_provisioned(region, reserved) + _unreserved(self._on_demand, region, reserved)
        return sum(reserved.values()) + shared

    def _set_aside(self, region: str, name: str) -> int:
        """Return what a function has provisioned in all."""
        return sum(count for one, count in self._provisioned.items() if (one.region, one.name) == (region, name))

    def _shared_provisioned(self, region: str, reserved: Mapping[str, int]) -> int:
        """Return what is provisioned out of the account's pool: by the functions that reserve nothing."""
        named = self._provisioned.items()
        return sum(count for one, count in named if one.region == region and one.name not in reserved)


def _unreserved(counts: Counter[tuple[str, str]], region: str, reserved: Mapping[str, int]) -> int:
    """Return how many are counted of the functions of a region that reserve nothing."""
    return sum(count for (where, name), count in counts.items() if where == region and name not in reserved)


def _require_unreserved(left: int, setting: str) -> None:
    if left < MIN_UNRESERVED_CONCURRENCY:
        raise ServiceError(
            "InvalidParameterValueException",
            f"Specified {setting} for function decreases account's UnreservedConcurrentExecution "
            f"below its minimum value of [{MIN_UNRESERVED_CONCURRENCY}].",
        )


def reservations(region: str) -> dict[str, int]:
    """Return what each function of a region reserves, of those that do."""
    functions: Iterable[LambdaFunction] = lambda_backends[ACCOUNT_ID][region].list_functions()
    return {one.function_name: one.reserved_concurrency for one in functions if one.reserved_concurrency is not None}
