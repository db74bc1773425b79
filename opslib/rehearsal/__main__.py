"""The rehearsal from a shell.

    eval "$(python -m opslib.rehearsal start)"     # detached; this shell's AWS is now the rehearsal
    python -m opslib.rehearsal status
    eval "$(python -m opslib.rehearsal stop)"      # ends it, and unsets the variables again
    python -m opslib.rehearsal interrupt JOB       # takes a training job's spot instances away, for a while
    python -m opslib.rehearsal run -- COMMAND ...  # any program with a rehearsal of its own around it

Standard output holds nothing but lines for the shell; everything for people goes to standard error. `run` exits with
the command's exit code, or 128 + n when signal n ended it; `status` exits with 3 when nothing is running.
"""

import argparse
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence

from opslib.errors import OpslibError
from opslib.rehearsal import daemon
from opslib.rehearsal.environment import overriding_variables
from opslib.rehearsal.interruptions import DEFAULT_AWAY_SECONDS, interrupt_training
from opslib.rehearsal.processes.keeper import start_foreground_process
from opslib.rehearsal.server import DEFAULT_REGION, start

NOT_RUNNING = 3
CANNOT_RUN = 127


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def start_command(options: argparse.Namespace) -> int:
    """Start a detached rehearsal, or find the running one, and print the lines that lead a shell to it."""
    state = daemon.ensure_started(options.region, options.port, options.speed)
    for name in overriding_variables(os.environ):
        sys.stdout.write(f"unset {name}\n")
    for name, value in state.variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    _say(f"rehearsal at {state.endpoint_url} (process {state.pid})")
    _say('  end it:  eval "$(python -m opslib.rehearsal stop)"')
    if own := sorted(name for name in os.environ if name.startswith("AWS_") and name not in state.variables):
        _say(f"  it takes the place of this shell's own {', '.join(own)}: open another shell to speak to AWS again")
    return 0


def status_command(options: argparse.Namespace) -> int:  # noqa: ARG001 - every command takes the options
    """Say whether a detached rehearsal is running, and since when."""
    state = daemon.read_state()
    if state is None:
        _say("no rehearsal is running")
        return NOT_RUNNING
    here = (
        "this shell leads to it"
        if os.environ.get("AWS_ENDPOINT_URL") == state.endpoint_url
        else "not set in this shell"
    )
    _say(f"rehearsal at {state.endpoint_url} (process {state.pid}), up {time.time() - state.started:.0f} s; {here}")
    return 0


def stop_command(options: argparse.Namespace) -> int:  # noqa: ARG001
    """End the detached rehearsal and print the lines that unset its variables."""
    state = daemon.read_state()
    stopped = daemon.ensure_stopped()
    for name in state.variables if state else {}:
        sys.stdout.write(f"unset {name}\n")
    _say("rehearsal stopped" if stopped else "no rehearsal was running")
    return 0


def run_command(options: argparse.Namespace) -> int:
    """Run a command with a rehearsal of its own around it; return its exit code."""
    with start(region=options.region, port=options.port, speed=options.speed):
        try:
            process = start_foreground_process(options.command)
        except OpslibError as error:
            _say(str(error))
            return CANNOT_RUN
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _forwarder(process.send_signal))
        return process.wait()


def interrupt_command(options: argparse.Namespace) -> int:
    """Take a training job's spot instances away, in the shell's rehearsal or else in the detached one."""
    state = daemon.read_state()
    variables = state.variables if state and "AWS_ENDPOINT_URL" not in os.environ else os.environ
    interrupt_training(options.job, variables, options.away_seconds)
    _say(f"{options.job} is interrupted; it gets new instances in {options.away_seconds:g} s")
    return 0


def _forwarder(send: Callable[[int], None]) -> Callable[[int, object], None]:
    def forward(number: int, _frame: object) -> None:
        if number == signal.SIGINT and sys.stdin.isatty():
            return  # Ctrl-C: the terminal has given it to the command already
        send(number)

    return forward


def serve_command(options: argparse.Namespace) -> int:
    """Be the detached rehearsal, until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: ended.set())
    with start(region=options.region, port=options.port, speed=options.speed) as rehearsal:
        daemon.write_state(rehearsal.endpoint_url, rehearsal.environment)
        ended.wait()
        daemon.forget_state()
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--region", default=DEFAULT_REGION, help=f"the standard variables' region ({DEFAULT_REGION})")
    common.add_argument("--port", type=int, default=0, help="the port on 127.0.0.1 (a free one)")
    common.add_argument(
        "--speed",
        type=float,
        default=1.0,
        help="of the clock of metrics, alarms and scaling: 20 is a minute in 3 s (1)",
    )
    parser = argparse.ArgumentParser(prog="python -m opslib.rehearsal", description="A local AWS that really runs.")
    commands = parser.add_subparsers(required=True, metavar="start | status | stop | interrupt JOB | run -- COMMAND")
    commands.add_parser("start", parents=[common], help="start it, detached").set_defaults(perform=start_command)
    commands.add_parser("status", help="say whether it runs").set_defaults(perform=status_command)
    commands.add_parser("stop", help="end it with all that it started").set_defaults(perform=stop_command)
    commands.add_parser("serve", parents=[common]).set_defaults(perform=serve_command)
    interrupt = commands.add_parser("interrupt", help="take a training job's spot instances away for a while")
    interrupt.add_argument("job", metavar="JOB", help="the training job's name")
    interrupt.add_argument(
        "--away-seconds", type=float, default=DEFAULT_AWAY_SECONDS, help="how long no instances are to be had (5)"
    )
    interrupt.set_defaults(perform=interrupt_command)
    run = commands.add_parser("run", parents=[common], help="run a command with a rehearsal of its own")
    run.add_argument("command", nargs="+", metavar="COMMAND", help="the command and its arguments, after --")
    run.set_defaults(perform=run_command)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return options.perform(options)
    except OpslibError as error:
        _say(f"error: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
