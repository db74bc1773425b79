"""Runs and their ledgers: what was created, written down before it was created.

A run's ledger is `runs/<run_id>/ledger.jsonl`, one JSON object a line, so that `sweep` can clear up after a notebook
that stopped half-way, from another process.
"""

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from opslib.aws.session import address
from opslib.errors import ConfigurationError

RUN_TAG = "opslib:run"
"""Key of the tag that every resource of a run carries; its value is the run id."""

NAME_PREFIX = "opslib-"
LEDGER_FILE = "ledger.jsonl"
LONGEST_NAME = 63
"""SageMaker's and S3's longest name; Lambda and IAM take 64."""

_ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789"
LONGEST_RUN_ID = 29
_WORDS = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def new_token(length: int = 4) -> str:
    """Return `length` random lower-case letters and digits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))


def new_run_id() -> str:
    """Return an id such as `20261122-190312-k3f9`: sorts by time (UTC), and seldom the same twice within a second."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{new_token()}"


@dataclass(frozen=True)
class Resource:
    """One line of a ledger: what kind of thing, how AWS names it, when it was written down, and in which AWS it is."""

    kind: str
    identifier: str
    recorded_at: str = ""
    where: str = ""


@dataclass(frozen=True)
class Run:
    """One journey from photos to an empty account; its id is in the name and the tags of all it creates."""

    run_id: str
    directory: Path

    @property
    def tags(self) -> list[dict[str, str]]:
        """Tags as most services take them: `[{"Key": ..., "Value": ...}]`."""
        return [{"Key": RUN_TAG, "Value": self.run_id}]

    @property
    def prefix(self) -> str:
        """Key prefix of this run's objects in a bucket that is not its own, without a slash at the end."""
        return self.run_id

    @property
    def name_prefix(self) -> str:
        """How the names of this run's resources begin, and those of no other run.

        The double hyphen, which no run id holds, keeps run `demo` apart from run `demo-2`.
        """
        return f"{NAME_PREFIX}{self.run_id}--"

    def name(self, suffix: str) -> str:
        """Return the run's name for one thing, the same each time: `opslib-<run_id>--<suffix>`.

        At most 63 characters of a-z, 0-9 and `-`: what SageMaker, Lambda, IAM and S3 all accept.

        Raises:
            ConfigurationError: the suffix has other characters, or makes the name too long.
        """
        name = f"{self.name_prefix}{suffix}"
        if not _WORDS.fullmatch(suffix) or len(name) > LONGEST_NAME:
            raise ConfigurationError(
                f"{suffix!r} does not make a resource name",
                hint=f"use a-z, 0-9 and single hyphens, so that {name!r} has at most {LONGEST_NAME} characters",
            )
        return name

    def fresh_name(self, suffix: str) -> str:
        """Return a name that this run has not recorded yet: `name(suffix)`, then with `-2`, `-3` and so on."""
        taken = {resource.identifier for resource in self.resources()}
        name, count = self.name(suffix), 1
        while name in taken:
            count += 1
            name = self.name(f"{suffix}-{count}")
        return name

    def record(self, kind: str, identifier: str) -> None:
        """Write a resource down, on disk, before it is created.

        Repeating a resource is harmless. `kind` is one of `opslib.aws.sweeping.KINDS`.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        resource = Resource(kind, identifier, recorded_at=now, where=address())
        line = json.dumps(asdict(resource), ensure_ascii=False)
        with (self.directory / LEDGER_FILE).open("ab+") as ledger:
            if ledger.tell() and not _ends_with_newline(ledger):
                ledger.write(b"\n")  # the machine died within the last line: keep ours apart from it
            ledger.write(line.encode() + b"\n")
            ledger.flush()
            os.fsync(ledger.fileno())

    def resources(self) -> tuple[Resource, ...]:
        """Return what was written down, oldest first, each resource once.

        A torn line is passed over: it was never finished, so what it names was never created.
        """
        path = self.directory / LEDGER_FILE
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
        found: dict[tuple[str, str], Resource] = {}
        for resource in filter(None, map(_parse, lines)):
            found.setdefault((resource.kind, resource.identifier), resource)
        return tuple(found.values())


def _ends_with_newline(ledger: BinaryIO) -> bool:
    ledger.seek(-1, os.SEEK_END)
    return ledger.read(1) == b"\n"


def _parse(line: str) -> Resource | None:
    try:
        fields = json.loads(line)
        return Resource(fields["kind"], fields["identifier"], fields.get("recorded_at", ""), fields.get("where", ""))
    except (json.JSONDecodeError, KeyError, TypeError):
        return None


def start_run(name: str = "", *, run_id: str = "", home: Path = Path("runs")) -> Run:
    """Make the directory of a run and return the run; an existing `run_id` is taken up again.

    Args:
        name: A word for people, e.g. the notebook's name; kept in `run.json`.
        run_id: An id of your own (a-z, 0-9 and single hyphens, at most 29 characters); by default a new one.
        home: The directory that holds all runs.

    Raises:
        ConfigurationError: `run_id` cannot be part of a resource name.
    """
    run = open_run(run_id, home) if run_id else _unused_run(home)
    run.directory.mkdir(parents=True, exist_ok=True)
    about = run.directory / "run.json"
    if not about.exists():
        started = datetime.now(UTC).isoformat(timespec="seconds")
        about.write_text(
            json.dumps({"run_id": run.run_id, "name": name, "started_at": started}) + "\n", encoding="utf-8"
        )
    return run


def _unused_run(home: Path) -> Run:
    """Take an id that no run under `home` has: two that start within a second may draw the same token."""
    Path(home).mkdir(parents=True, exist_ok=True)
    while True:
        run = open_run(new_run_id(), home)
        with suppress(FileExistsError):
            run.directory.mkdir()
            return run


def open_run(run_id: str, home: Path = Path("runs")) -> Run:
    """Return the run of that id, whether or not its directory is here (sweeping works from names and tags, too).

    Raises:
        ConfigurationError: `run_id` cannot be part of a resource name.
    """
    if not _is_run_id(run_id):
        raise ConfigurationError(
            f"{run_id!r} is not a run id",
            hint="a run id has a-z, 0-9 and single hyphens, at most 29 characters; `python -m opslib runs`",
        )
    return Run(run_id, Path(home) / run_id)


def _is_run_id(text: str) -> bool:
    return bool(_WORDS.fullmatch(text)) and len(text) <= LONGEST_RUN_ID


def list_runs(home: Path = Path("runs")) -> tuple[Run, ...]:
    """Return the runs under `home`, oldest first."""
    return tuple(_runs(Path(home)))


def _runs(home: Path) -> Iterator[Run]:
    if home.is_dir():
        for directory in sorted(path for path in home.iterdir() if path.is_dir()):
            if _is_run_id(directory.name):
                yield Run(directory.name, directory)
