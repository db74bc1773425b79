"""How many invocations of a function may run at once: reserved concurrency, and the account's pool for the others.

Sources: docs.aws.amazon.com/lambda/latest/dg/lambda-concurrency.html and configuration-concurrency.html.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from moto.awslambda.models import LambdaFunction, lambda_backends

from opslib.rehearsal.calls import ACCOUNT_ID, Call, Operation, ServiceError

ACCOUNT_CONCURRENCY = 1000
"""Concurrent executions of an account and region, the default quota."""

MIN_UNRESERVED_CONCURRENCY = 100
"""What Lambda always keeps for the functions that reserve nothing."""


class Throttled(Exception):  # noqa: N818 - it becomes TooManyRequestsException
    """As many invocations run as may; `is_reserved` tells whether the function's own reservation says so."""

    def __init__(self, *, is_reserved: bool) -> None:
        super().__init__("reserved" if is_reserved else "unreserved")
        self.is_reserved = is_reserved


class Concurrency:
    """The concurrency of every function: what is set aside, what runs now, and the operations that reserve."""

    def __init__(self, find: Callable[[Call], LambdaFunction]) -> None:
        """Take what finds the function of a call."""
        self._find = find
        self._running: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()
        self.operations: dict[str, Operation] = {
            "lambda.PutFunctionConcurrency": self.put_function_concurrency,
            "lambda.GetFunctionConcurrency": self.get_function_concurrency,
            "lambda.DeleteFunctionConcurrency": self.delete_function_concurrency,
        }

    @contextmanager
    def invocation(self, function: LambdaFunction) -> Iterator[int]:
        """Count one invocation of any of a function's versions while the block runs; give how many run with it.

        Raises:
            Throttled: as many as may run already.
        """
        key = (function.region, function.function_name)
        with self._lock:
            reserved = reserved_concurrency(*key)
            if self._free(function.region, function.function_name, reserved) <= 0:
                raise Throttled(is_reserved=reserved is not None)
            self._running[key] += 1
            running = self._running[key]
        try:
            yield running
        finally:
            with self._lock:
                self._running[key] -= 1

    def put_function_concurrency(self, call: Call) -> dict[str, Any]:
        """Reserve concurrency: the function has as much for itself, and no more."""
        function, wanted = self._find(call), call.params["ReservedConcurrentExecutions"]
        with self._lock:
            others = sum(_reservations(call.region).values()) - (function.reserved_concurrency or 0)
            require_unreserved(ACCOUNT_CONCURRENCY - others - wanted, "ReservedConcurrentExecutions")
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
            return reserved - self._running[region, name]
        reservations = _reservations(region)
        shared = sum(
            count for (where, other), count in self._running.items() if where == region and other not in reservations
        )
        return ACCOUNT_CONCURRENCY - sum(reservations.values()) - shared


def reserved_concurrency(region: str, name: str) -> int | None:
    """Return what a function reserves; None: it shares the account's pool."""
    return _reservations(region).get(name)


def require_unreserved(left: int, setting: str) -> None:
    """Refuse a setting that leaves too little for the functions that reserve nothing.

    Raises:
        ServiceError: InvalidParameterValueException, in Lambda's words.
    """
    if left < MIN_UNRESERVED_CONCURRENCY:
        raise ServiceError(
            "InvalidParameterValueException",
            f"Specified {setting} for function decreases account's UnreservedConcurrentExecution "
            f"below its minimum value of [{MIN_UNRESERVED_CONCURRENCY}].",
        )


def _reservations(region: str) -> dict[str, int]:
    functions: Iterable[LambdaFunction] = lambda_backends[ACCOUNT_ID][region].list_functions()
    return {one.function_name: one.reserved_concurrency for one in functions if one.reserved_concurrency is not None}
