"""How Lambda's own lines of a function's log are written: as text, or as one JSON object each.

The function's lines are its runtime's: the client of the Runtime API reads AWS_LAMBDA_LOG_FORMAT itself.
Sources: docs.aws.amazon.com/lambda/latest/dg/monitoring-cloudwatchlogs-logformat.html, telemetry-schema-reference.html.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from opslib.rehearsal.calls import ServiceError

_FLOOD = "the rehearsal keeps 8 MB of an invocation's"

_LEVELS = ("DEBUG", "INFO", "WARN")
"""Of Lambda's own lines, from most to fewest."""


@dataclass(frozen=True)
class Report:
    """What is said at the end of an invocation; `status` is success, error or timeout."""

    request_id: str
    duration_ms: float
    memory_mb: int
    peak_mb: int
    init_ms: float = 0.0
    """0 when the environment was there already."""
    status: str = "success"
    error_type: str = ""

    @property
    def billed_ms(self) -> int:
        """What is paid for: the initialisation too."""
        return math.ceil(self.duration_ms + self.init_ms)


class LogFormat(Protocol):
    """Writes Lambda's lines; each method returns the lines, which may be none."""

    def init(self, duration_ms: float, status: str, error_type: str) -> list[str]:
        """The initialisation failed (error) or took too long (timeout)."""

    def start(self, request_id: str, version: str) -> list[str]:
        """An invocation begins."""

    def failure(self, text: str) -> list[str]:
        """The environment cannot go on."""

    def dropped(self, count: int) -> list[str]:
        """So many bytes of output are not in the log."""

    def end(self, report: Report) -> list[str]:
        """An invocation is over."""


class TextFormat:
    """START, END and REPORT lines."""

    def init(self, duration_ms: float, status: str, error_type: str) -> list[str]:
        """Return the INIT_REPORT line."""
        fields = [f"INIT_REPORT Init Duration: {duration_ms:.2f} ms", "Phase: init", f"Status: {status}"]
        return ["\t".join([*fields, f"Error Type: {error_type}"] if error_type else fields)]

    def start(self, request_id: str, version: str) -> list[str]:
        """Return the START line."""
        return [f"START RequestId: {request_id} Version: {version}"]

    def failure(self, text: str) -> list[str]:
        """Return the text itself."""
        return [text] if text else []

    def dropped(self, count: int) -> list[str]:
        """Return a line of the rehearsal's own."""
        return [f"{count} bytes of output were dropped: {_FLOOD}"] if count else []

    def end(self, report: Report) -> list[str]:
        """Return the END and the REPORT line."""
        fields = [
            f"REPORT RequestId: {report.request_id}",
            f"Duration: {report.duration_ms:.2f} ms",
            f"Billed Duration: {report.billed_ms} ms",
            f"Memory Size: {report.memory_mb} MB",
            f"Max Memory Used: {report.peak_mb} MB",
        ]
        if report.init_ms:
            fields.append(f"Init Duration: {report.init_ms:.2f} ms")
        if report.status != "success":
            fields.append(f"Status: {report.status}")
        if report.error_type:
            fields.append(f"Error Type: {report.error_type}")
        return [f"END RequestId: {report.request_id}", "\t".join(fields) + "\t"]


@dataclass(frozen=True)
class JsonFormat:
    """Lambda's events platform.start and platform.report, those of `level` and above."""

    level: str = "INFO"

    def init(self, duration_ms: float, status: str, error_type: str) -> list[str]:
        """Return platform.initReport."""
        record = {"phase": "init", "status": status, "metrics": {"durationMs": round(duration_ms, 3)}}
        return self._line("WARN", "platform.initReport", record | ({"errorType": error_type} if error_type else {}))

    def start(self, request_id: str, version: str) -> list[str]:
        """Return platform.start."""
        return self._line("INFO", "platform.start", {"requestId": request_id, "version": version})

    def failure(self, text: str) -> list[str]:  # noqa: ARG002 - the report says it
        """Return nothing: platform.report has the reason."""
        return []

    def dropped(self, count: int) -> list[str]:
        """Return platform.logsDropped."""
        return self._line("WARN", "platform.logsDropped", {"droppedBytes": count, "reason": _FLOOD}) if count else []

    def end(self, report: Report) -> list[str]:
        """Return platform.report."""
        metrics: dict[str, Any] = {
            "durationMs": round(report.duration_ms, 3),
            "billedDurationMs": report.billed_ms,
            "memorySizeMB": report.memory_mb,
            "maxMemoryUsedMB": report.peak_mb,
        }
        if report.init_ms:
            metrics["initDurationMs"] = round(report.init_ms, 3)
        record = {"requestId": report.request_id, "metrics": metrics, "status": report.status}
        if report.error_type:
            record["errorType"] = report.error_type
        return self._line("INFO" if report.status == "success" else "WARN", "platform.report", record)

    def _line(self, level: str, kind: str, record: dict[str, Any]) -> list[str]:
        if _LEVELS.index(level) < _LEVELS.index(self.level):
            return []
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return [json.dumps({"time": now, "type": kind, "record": record}, separators=(",", ":"))]


def logging_config(wanted: Mapping[str, str], present: Mapping[str, str], name: str) -> dict[str, str]:
    """Return a function's LoggingConfig: what a call names over what there is, with Lambda's defaults.

    Raises:
        ServiceError: InvalidParameterValueException; levels are for JSON only.
    """
    config = {"LogFormat": "Text", "LogGroup": f"/aws/lambda/{name}", **present, **wanted}
    levels = {level: config.pop(level, "INFO") for level in ("ApplicationLogLevel", "SystemLogLevel")}
    if config["LogFormat"] == "JSON":
        return config | levels
    if any(level in wanted for level in levels):
        named = " and ".join(level for level in levels if level in wanted)
        reason = f"{named} cannot be set when LogFormat is Text; choose JSON."
        raise ServiceError("InvalidParameterValueException", reason)
    return config


def build_log_format(config: Mapping[str, str]) -> LogFormat:
    """Return what writes Lambda's lines under a LoggingConfig."""
    return JsonFormat(config["SystemLogLevel"]) if config["LogFormat"] == "JSON" else TextFormat()


def log_variables(config: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that tell the runtime how the function's own lines are to look."""
    if config["LogFormat"] != "JSON":
        return {}
    return {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": config["ApplicationLogLevel"]}
