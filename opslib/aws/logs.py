"""CloudWatch Logs: the groups and streams of jobs, endpoints and functions, and their lines in order."""

from contextlib import suppress

from opslib.aws.failures import explained, gone_is_fine
from opslib.aws.ledger import RUN_TAG, Run
from opslib.aws.session import client

TRAINING_GROUP = "/aws/sagemaker/TrainingJobs"
RETENTION_DAYS = 7


def endpoint_group(endpoint_name: str) -> str:
    """Return the log group of an endpoint."""
    return f"/aws/sagemaker/Endpoints/{endpoint_name}"


def function_group(function_name: str) -> str:
    """Return the log group of a Lambda function."""
    return f"/aws/lambda/{function_name}"


def ensure_log_group(run: Run, name: str) -> bool:
    """Make a log group that carries the run's tag and forgets after seven days; tell whether it is the run's.

    Services make missing groups themselves, but untagged and for ever. A group that was there before the run holds
    somebody's lines: it stays as it is.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    logs = client("logs")
    is_recorded = any((one.kind, one.identifier) == ("log-group", name) for one in run.resources())
    if not is_recorded and name in list_log_groups(name):
        return False
    run.record("log-group", name)
    with explained(f"making log group {name}"):
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=name, tags={RUN_TAG: run.run_id})
        logs.put_retention_policy(logGroupName=name, retentionInDays=RETENTION_DAYS)
    return True


def delete_log_group(name: str) -> None:
    """Delete a log group with all its streams; succeeds when it is already gone.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    with explained(f"deleting log group {name}"), gone_is_fine():
        client("logs").delete_log_group(logGroupName=name)


def list_log_groups(prefix: str) -> list[str]:
    """Return the names of the log groups that begin with `prefix`.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    with explained(f"listing the log groups {prefix}*"):
        pages = client("logs").get_paginator("describe_log_groups").paginate(logGroupNamePrefix=prefix)
        return [group["logGroupName"] for page in pages for group in page["logGroups"]]


def list_log_streams(group: str, prefix: str) -> list[str]:
    """Return the names of the streams of `group` that begin with `prefix`; none when the group is absent.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    wanted = {"logStreamNamePrefix": prefix} if prefix else {}
    with explained(f"listing the streams {prefix}* of {group}"), gone_is_fine():
        pages = client("logs").get_paginator("describe_log_streams").paginate(logGroupName=group, **wanted)
        return sorted(stream["logStreamName"] for page in pages for stream in page["logStreams"])
    return []


def delete_log_streams(group: str, prefix: str) -> None:
    """Delete the streams of `group` that begin with `prefix`; succeeds when they are already gone.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    for stream in list_log_streams(group, prefix):
        with explained(f"deleting log stream {stream}"), gone_is_fine():
            client("logs").delete_log_stream(logGroupName=group, logStreamName=stream)


class LogReader:
    """Reads the streams of one job, endpoint or function; each call of `read` returns the lines that are new.

    Streams are found anew at each call, since hosts come up one after the other. Lines keep their order within a
    stream; when there are several streams, each line begins with the last part of its stream's name.
    """

    def __init__(self, group: str, prefix: str = "") -> None:
        """Read the streams of `group` whose names begin with `prefix`."""
        self.group = group
        self.prefix = prefix
        self._tokens: dict[str, str] = {}

    def read(self) -> list[str]:
        """Return the lines that came since the last call, without their line ends.

        Raises:
            AwsError: CloudWatch Logs refused.
        """
        streams = list_log_streams(self.group, self.prefix)
        lines: list[str] = []
        for stream in streams:
            label = f"[{_host(stream)}] " if len(streams) > 1 else ""
            lines += [label + line for line in self._read_stream(stream)]
        return lines

    def _read_stream(self, stream: str) -> list[str]:
        lines: list[str] = []
        with explained(f"reading log stream {stream}"):
            while True:
                token = self._tokens.get(stream)
                page = client("logs").get_log_events(
                    logGroupName=self.group,
                    logStreamName=stream,
                    startFromHead=True,
                    **({"nextToken": token} if token else {}),
                )
                lines += [event["message"].rstrip("\r\n") for event in page["events"]]
                # The end of a stream is a token that comes back unchanged; pages before it may be empty.
                if page["nextForwardToken"] == token:
                    return lines
                self._tokens[stream] = page["nextForwardToken"]


def _host(stream: str) -> str:
    """Return `algo-1` of `<job>/algo-1-1700000000`, the way a training job's streams are named."""
    last = stream.rsplit("/", 1)[-1]
    host, _, started = last.rpartition("-")
    return host if host and started.isdigit() else last


def log_tail(group: str, prefix: str = "", count: int = 20) -> str:
    """Return the last `count` lines as one text, each indented and cut to 200 characters; empty when there are none.

    Left out is what the SageMaker SDK's start script says of itself: its trace (`+ ...`) and its dump of variables.

    Raises:
        AwsError: CloudWatch Logs refused.
    """
    told = [
        line for line in LogReader(group, prefix).read() if not line.startswith(("+", "SM_", "Requirement already"))
    ]
    return "\n".join(f"  | {line[:200]}" for line in told[-count:])
