"""Reserved and provisioned concurrency, set up from a specification."""

from pathlib import Path

import pytest

from opslib.aws import roles
from opslib.aws.function_concurrency import PROVISIONED_ALIAS
from opslib.aws.functions import ensure_function, invoke_function
from opslib.aws.session import client
from opslib.errors import AwsError, FunctionFailed
from opslib.specs import FunctionSpec

KIND = "import os\ndef lambda_handler(event, context): return [os.environ['AWS_LAMBDA_INITIALIZATION_TYPE'], {n}]"


@pytest.fixture
def ensure(run, tmp_path):
    """Return a function that makes the run's function from a specification and a source; returns its name."""
    role, code = roles.ensure_function_role(run, "none"), Path(tmp_path) / "kind.py"

    def make(source: str, **settings) -> str:
        code.write_text(source)
        return ensure_function(run, FunctionSpec(**settings), endpoint_name="none", role=role, code=code)

    return make


def test_provisioned_concurrency_follows_the_specification_and_the_code(ensure, monkeypatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # otherwise botocore asks again, with pauses
    name = ensure(KIND.format(n=1), reserved_concurrency=2, provisioned_concurrency=2)
    assert invoke_function(name, {}, qualifier=PROVISIONED_ALIAS).payload == ["provisioned-concurrency", 1]
    assert "Init Duration" not in invoke_function(name, {}, qualifier=PROVISIONED_ALIAS).log_tail
    with pytest.raises(AwsError, match="TooManyRequests"):  # all that is reserved is provisioned
        invoke_function(name, {})
    ensure(KIND.format(n=1), reserved_concurrency=2, provisioned_concurrency=2)
    assert len(client("lambda").list_versions_by_function(FunctionName=name)["Versions"]) == 2  # with $LATEST
    ensure(KIND.format(n=2), reserved_concurrency=1, provisioned_concurrency=1)
    assert invoke_function(name, {}, qualifier=PROVISIONED_ALIAS).payload == ["provisioned-concurrency", 2]
    ensure(KIND.format(n=2))
    assert (
        client("lambda").list_provisioned_concurrency_configs(FunctionName=name)["ProvisionedConcurrencyConfigs"] == []
    )
    assert invoke_function(name, {}).payload == ["on-demand", 2]


def test_environments_that_cannot_start_are_told(ensure) -> None:
    with pytest.raises(FunctionFailed, match="FUNCTION_ERROR_INIT_FAILURE"):
        ensure("raise ValueError('broken')", provisioned_concurrency=1)
