"""Runs: ids that sort, names that every service takes, a ledger that survives a crash."""

import json
import re

import pytest

from opslib.aws import ledger
from opslib.aws.ledger import LEDGER_FILE, LONGEST_RUN_ID, Resource, list_runs, new_run_id, open_run, start_run
from opslib.errors import ConfigurationError

NAME = re.compile(r"[a-z0-9](-*[a-z0-9]){0,62}")  # what SageMaker, Lambda, IAM and S3 all accept


def test_run_ids_begin_with_the_time_and_end_with_a_token() -> None:
    assert re.fullmatch(r"\d{8}-\d{6}-[a-z0-9]{4}", new_run_id())


def test_runs_that_draw_the_same_id_are_kept_apart(tmp_path, monkeypatch) -> None:
    drawn = iter(["20261122-190312-k3f9", "20261122-190312-k3f9", "20261122-190312-x7ra"])
    monkeypatch.setattr(ledger, "new_run_id", lambda: next(drawn))
    assert start_run(home=tmp_path).run_id == "20261122-190312-k3f9"
    assert start_run(home=tmp_path).run_id == "20261122-190312-x7ra"


def test_a_home_that_leads_nowhere_is_an_error(tmp_path) -> None:
    (tmp_path / "runs").symlink_to(tmp_path / "unmounted")
    with pytest.raises(FileExistsError):
        start_run(home=tmp_path / "runs")


def test_a_run_is_written_down_and_listed(tmp_path) -> None:
    run = start_run("tour", home=tmp_path)
    assert json.loads((run.directory / "run.json").read_text())["name"] == "tour"
    assert start_run(run_id=run.run_id, home=tmp_path) == run
    assert list_runs(tmp_path) == (run,)
    assert list_runs(tmp_path / "nowhere") == ()


def test_names_fit_every_service(tmp_path) -> None:
    longest = start_run(run_id="a" * LONGEST_RUN_ID, home=tmp_path)
    for suffix in ("data", "execution", "lambda", "function", "endpoint-12", "train-k3f9"):
        assert NAME.fullmatch(longest.name(suffix))
    assert len(longest.name("train-k3f9") + "-20261122193000") <= 63  # the SDK adds the time
    assert longest.name("data") == longest.name("data")


@pytest.mark.parametrize("suffix", ["", "Photos", "a_b", "-a", "a-", "a--b", "x" * 60])
def test_other_suffixes_are_refused(tmp_path, suffix: str) -> None:
    with pytest.raises(ConfigurationError, match="resource name"):
        start_run(home=tmp_path).name(suffix)


@pytest.mark.parametrize("run_id", ["../etc", "Demo", "a--b", "-a", "a" * (LONGEST_RUN_ID + 1), "a b"])
def test_other_run_ids_are_refused(tmp_path, run_id: str) -> None:
    with pytest.raises(ConfigurationError, match="run id"):
        open_run(run_id, tmp_path)


def test_no_runs_names_begin_like_anothers(tmp_path) -> None:
    assert not open_run("demo-2", tmp_path).name("data").startswith(open_run("demo", tmp_path).name_prefix)


def test_each_resource_is_told_once_oldest_first(tmp_path) -> None:
    run = start_run(home=tmp_path)
    run.record("bucket", "photos")
    run.record("role", "worker")
    run.record("bucket", "photos")
    kinds = [(resource.kind, resource.identifier) for resource in run.resources()]
    assert kinds == [("bucket", "photos"), ("role", "worker")]


def test_a_fresh_name_is_one_that_was_not_recorded(tmp_path) -> None:
    run = start_run(home=tmp_path)
    assert run.fresh_name("endpoint") == run.name("endpoint")
    run.record("endpoint", run.name("endpoint"))
    assert run.fresh_name("endpoint") == run.name("endpoint-2")


def test_a_torn_line_costs_only_itself(tmp_path) -> None:
    run = start_run(home=tmp_path)
    run.record("role", "first")
    with (run.directory / LEDGER_FILE).open("a") as ledger:
        ledger.write('{"kind": "buck')  # the machine died here, before the bucket was made
    run.record("role", "second")
    assert [resource.identifier for resource in run.resources()] == ["first", "second"]


def test_the_ledger_speaks_unicode(tmp_path) -> None:
    run = start_run(home=tmp_path)
    run.record("endpoint", "Föhn …")
    assert isinstance(run.resources()[0], Resource)
    assert run.resources()[0].identifier == "Föhn …"


def test_it_is_written_down_in_which_aws_a_thing_is(tmp_path, monkeypatch) -> None:
    run = start_run(home=tmp_path)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    run.record("role", "on-aws")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    run.record("role", "in-a-rehearsal")
    assert [resource.where for resource in run.resources()] == [
        "eu-west-1 (https://sts.eu-west-1.amazonaws.com)",
        "eu-west-1 (http://127.0.0.1:9)",
    ]
