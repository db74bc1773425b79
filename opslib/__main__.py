"""Runs and what they left: the command line of opslib.

python -m opslib where                                 which AWS am I talking to?
python -m opslib run train_and_deploy.ipynb -p epochs 20
python -m opslib runs                                  the runs in ./runs, and what each wrote down
python -m opslib sweep 20261122-190312-k3f9            delete what a run made, and say what is left
python -m opslib version
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import opslib
from opslib.errors import ConfigurationError, OpslibError


def _where(_: argparse.Namespace) -> int:
    from opslib.aws.session import whereabouts

    _say(str(whereabouts()))
    return 0


def _version(_: argparse.Namespace) -> int:
    _say(f"opslib {opslib.__version__}")
    return 0


def _runs(arguments: argparse.Namespace) -> int:
    from opslib.aws.ledger import list_runs

    runs = list_runs(arguments.home)
    for run in runs:
        _say(f"{run.run_id}  {_status(run.directory):<10}  {len(run.resources()):3d} written down  {run.directory}")
    if not runs:
        _say(f"no runs in {arguments.home}")
    return 0


def _status(directory: Path) -> str:
    """Return how a run of the runner ended; a notebook in JupyterLab leaves no such word."""
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return "-"
    return "kept" if summary.get("kept") else str(summary.get("status", "-"))


def _sweep(arguments: argparse.Namespace) -> int:
    from opslib.aws.session import whereabouts
    from opslib.aws.sweeping import sweep

    _say(str(whereabouts()))
    report = sweep(arguments.run_id, arguments.home)
    _no_longer_kept(arguments.home / arguments.run_id, report.leftovers)
    if not (report.deleted or report.leftovers or (arguments.home / arguments.run_id).is_dir()):
        raise ConfigurationError(
            f"there is no run {arguments.run_id!r} in {arguments.home}, and AWS knows nothing by that name or tag",
            hint="python -m opslib runs lists them; --home names another directory of runs",
        )
    _say(str(report))
    return 1 if report.leftovers else 0


def _no_longer_kept(directory: Path, leftovers: Sequence[object]) -> None:
    """Write down that nothing is left of a run that was left standing."""
    if _status(directory) == "kept" and not leftovers:
        from opslib.aws.ledger import open_run
        from opslib.notebook import write_summary

        write_summary(open_run(directory.name, directory.parent), kept=False, leftovers=[])


def _run(arguments: argparse.Namespace) -> int:
    from opslib.notebook import execute

    try:
        outcome = execute(arguments.notebook, dict(arguments.parameters), home=arguments.home)
    except KeyboardInterrupt:
        # As the program ends, the loop that ran the cells would tell of the one that was cut off, with a traceback.
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)
        _say("failed   the run was interrupted; what it had made was swept (python -m opslib runs)")
        return 130
    for left in outcome.summary["leftovers"]:
        _say(f"LEFT     {left}   (python -m opslib sweep {outcome.run_id})")
    _say(outcome.verdict)
    if outcome.summary["kept"]:
        _say(f"KEPT     all of it stands, and on AWS is billed: python -m opslib sweep {outcome.run_id}")
    _say(f"report   {outcome.report}")
    return 1 if outcome.failure or outcome.summary["leftovers"] else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m opslib", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--home", type=Path, default=Path("runs"), help="directory of the runs (default: runs)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("where", help="which AWS am I talking to?").set_defaults(command=_where)
    commands.add_parser("version", help="the version of opslib").set_defaults(command=_version)
    commands.add_parser("runs", help="the runs in --home").set_defaults(command=_runs)
    sweep = commands.add_parser("sweep", help="delete what a run made, and say what is left")
    sweep.add_argument("run_id", metavar="RUN_ID", help="as its first cell and `python -m opslib runs` say it")
    sweep.set_defaults(command=_sweep)
    run = commands.add_parser("run", help="execute a notebook, report, and sweep what it made")
    run.add_argument("notebook", type=Path, metavar="NOTEBOOK", help="an .ipynb file, such as train_and_deploy.ipynb")
    run.add_argument(
        "-p",
        dest="parameters",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="a parameter of the notebook, from its first cell of code; may be repeated",
    )
    run.set_defaults(command=_run)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed or something left, 2 wrong arguments, 130 interrupted."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.command(parsed)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return 130
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OpslibError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
