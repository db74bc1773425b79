"""The Python of Lambda functions: this machine's interpreter with the packages of AWS's runtime, and no others.

A handler that imports what its zip does not hold fails here as it fails on AWS (`Runtime.ImportModuleError`), although
the package is installed on this machine. Source: docs.aws.amazon.com/lambda/latest/dg/lambda-python.html.
"""

import sys
from importlib import metadata
from pathlib import Path

RUNTIME_PACKAGES = (
    "awslambdaric",
    "boto3",
    "botocore",
    "jmespath",
    "python-dateutil",
    "s3transfer",
    "simplejson",
    "six",
    "snapshot-restore-py",
    "urllib3",
)
"""The distributions that every Python runtime of Lambda holds."""


def build_runtime(directory: Path) -> Path:
    """Make a virtual environment of links in `directory`, in a few milliseconds; return its interpreter."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = directory / "lib" / version / "site-packages"
    packages.mkdir(parents=True)
    (directory / "bin").mkdir()
    base = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    (directory / "pyvenv.cfg").write_text(
        f"home = {base.parent}\ninclude-system-site-packages = false\n", encoding="utf-8"
    )
    python = directory / "bin" / "python3"
    python.symlink_to(base)
    for source in _installed_parts():
        (packages / source.name).symlink_to(source)
    return python


def _installed_parts() -> set[Path]:
    """Return the top-level directories and modules of the runtime's distributions, and their metadata."""
    parts = set()
    for name in RUNTIME_PACKAGES:
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in {"..", "__pycache__"}:
                parts.add(Path(distribution.locate_file(top)).resolve())
    return parts
