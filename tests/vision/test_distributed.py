"""Several processes train one model: the same as one process would, each photo once, and none waits for a dead one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

import hpo
from opslib.errors import ConfigurationError
from opslib.vision.data import open_photos
from opslib.vision.distributed import Ranks, read_ranks
from opslib.vision.sharing import share_photos

HPO = Path(__file__).parents[2] / "hpo.py"
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SM_HOSTS")


class Host:
    """One process of hpo.py; `folder` holds its photos."""

    def __init__(
        self, folder: Path, model: Path, *arguments: object, program: Sequence[object] = (HPO,), **variables: object
    ) -> None:
        inherited = {name: value for name, value in os.environ.items() if name not in LAUNCHERS}
        environment = inherited | {name: str(value) for name, value in variables.items()} | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, *program, "--data", folder, "--model_dir", model]
        command += ["--backbone", "efficientnet_lite0", "--batch_size", "8", *arguments]
        self.process = subprocess.Popen(
            [str(part) for part in command],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait_for(self, words: str) -> str:
        """Return the output up to the line that begins with `words`."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith(words):
                return "".join(lines)
        raise AssertionError("".join(lines))

    def end(self) -> tuple[int, str]:
        """Return the exit code and the rest of the output."""
        output, _ = self.process.communicate(timeout=120)
        return self.process.returncode, output


def start_hosts(folders: list[Path], model: Path, *arguments: object, **variables: object) -> list[Host]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = variables | {
        "WORLD_SIZE": len(folders),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "LOCAL_RANK": 0,
    }
    return [
        Host(folder, model, *arguments, **launcher, RANK=rank, SM_CURRENT_HOST=f"algo-{rank + 1}", **output)
        for rank, folder in enumerate(folders)
        for output in [{"SM_OUTPUT_DATA_DIR": model / f"output-{rank + 1}"} if rank else {}]
    ]


def weights(model: Path) -> torch.Tensor:
    state = torch.load(model / "model.pth", weights_only=True)
    return torch.cat([value.float().flatten() for name, value in sorted(state.items()) if name.startswith("head")])


@pytest.fixture(scope="module")
def halves(sample, tmp_path_factory) -> list[Path]:
    """The sample, dealt out as S3's ShardedByS3Key does; the first host has one photo more."""
    folders = [tmp_path_factory.mktemp("half") for _ in range(2)]
    for position, path in enumerate(sorted(sample.rglob("*.jpg"))):
        target = folders[0 if position == 1 else position % 2] / path.relative_to(sample)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    return folders


@pytest.fixture(scope="module")
def alone(sample, tmp_path_factory) -> Path:
    model = tmp_path_factory.mktemp("alone")
    code, output = Host(sample, model, "--epochs", 4).end()
    assert code == 0, output
    return model


@pytest.mark.parametrize("kind", ["FullyReplicated", "ShardedByS3Key"])
def test_two_hosts_train_the_model_of_one(sample, halves, alone, tmp_path, kind):
    folders = [sample, sample] if kind == "FullyReplicated" else halves
    hosts = start_hosts(folders, tmp_path, "--epochs", 4)
    for host in hosts:
        code, output = host.end()
        assert code == 0, output
    assert torch.allclose(weights(tmp_path), weights(alone), atol=1e-5)
    report, expected = (json.loads((folder / "report.json").read_text()) for folder in (tmp_path, alone))
    assert report["test_accuracy"] == expected["test_accuracy"]
    assert report["metrics"]["valid_loss"] == pytest.approx(expected["metrics"]["valid_loss"], rel=1e-5)
    assert report["world_size"] == 2
    assert [row["host"] for row in report["ranks"]] == ["algo-1", "algo-2"]
    other = tmp_path / "output-2"  # on SageMaker either host's output may be the one that is kept
    assert json.loads((other / "report.json").read_text())["ranks"] == report["ranks"]
    assert len((other / "metrics.jsonl").read_text().splitlines()) == report["epochs"]
    assert len({row["weights_sha256"] for row in report["ranks"]}) == 1
    for split, count in report["photos"].items():
        assert sum(row[f"{split}_photos"] for row in report["ranks"]) == count == expected["photos"][split]
    assert "epoch 1/4" not in output  # the last host's: only the first one tells


@pytest.fixture
def endless(sample, tmp_path) -> Iterator[list[Host]]:
    """Two hosts in the middle of a training that does not end by itself."""
    hosts = start_hosts([sample, sample], tmp_path, "--epochs", 1_000_000, "--patience", 1_000_000)
    hosts[0].wait_for("epoch 3/")
    yield hosts
    for host in hosts:
        host.process.kill()
        host.end()


def test_killed_host_ends_the_others_with_a_reason(endless):
    first, second = endless
    second.process.kill()
    code, output = first.end()
    assert code == 1
    assert "error: rank 1 on algo-2 was lost: nothing was heard of it" in output


def test_host_that_stands_still_is_noticed_even_if_all_meet_there(endless):
    first, second = endless
    first.process.send_signal(signal.SIGSTOP)
    code, output = second.end()
    assert code == 1
    assert "error: rank 0 on algo-1 was lost: its store has not answered" in output


def test_reason_of_one_host_is_the_reason_of_all(halves, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(halves[1], broken)
    photo = sorted(broken.rglob("*.jpg"))[0]
    photo.write_bytes(photo.read_bytes()[:300])
    (tmp_path / "output").mkdir()
    hosts = start_hosts([halves[0], broken], tmp_path / "model", SM_OUTPUT_DIR=tmp_path / "output")
    reasons = [host.end() for host in hosts]
    assert [code for code, _ in reasons] == [1, 1]
    assert f"rank 1 on algo-2 ended: PhotosError: {photo.relative_to(broken)} cannot be used" in reasons[0][1]
    assert (tmp_path / "output" / "failure").read_text().startswith(f"{photo.relative_to(broken)} cannot be used")


def test_torchrun_ends_in_good_order(sample, alone, tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, HPO]
    code, output = Host(sample, tmp_path, "--epochs", 4, program=command).end()
    assert code == 0, output
    assert torch.allclose(weights(tmp_path), weights(alone), atol=1e-5)
    assert [row["rank"] for row in json.loads((tmp_path / "report.json").read_text())["ranks"]] == [0, 1]


def test_every_photo_has_one_owner_that_has_it(sample):
    photos = open_photos(sample)
    keys = [photo.key for photo in photos]
    seen = [
        {key: 1 for key in keys if position % 2 or rank != 1} | {f"train/extra/{rank}.jpg": 1}
        for rank in range(3)
        for position in [rank]
    ]

    class Three(Ranks):
        def gather(self, value):
            return seen

    shares = [share_photos(photos, Three(rank, 3)) for rank in range(3)]
    for split in ("train", "valid", "test"):
        owned = [position for share in shares for position in share.positions[split]]
        assert sorted(owned) == list(range(len(shares[0].photos.files[split])))
        assert (
            max(len(share.positions[split]) for share in shares) - min(len(share.positions[split]) for share in shares)
            <= 1
        )
    assert "extra" in shares[0].photos.classes
    for rank, share in enumerate(shares):
        assert {photo.key for split in share.positions for photo in share.own(split)} <= seen[rank].keys()


def test_a_part_without_validation_photos_keeps_its_training_photos(sample, tmp_path):
    shutil.copytree(sample / "train", tmp_path / "train")
    train = len(list((tmp_path / "train").rglob("*.jpg")))

    class Two(Ranks):
        def gather(self, value):
            return [value, others]

    others = {"train", "valid", "test"}
    assert hpo.open_part(tmp_path, 0, Two(0, 2)).counts == {"train": train, "valid": 0, "test": 0}
    others = {"train"}
    assert hpo.open_part(tmp_path, 0, Two(0, 2)).counts == open_photos(tmp_path).counts
    assert open_photos(tmp_path).counts["valid"] > 0


def test_program_that_nobody_launched_is_alone():
    ranks = read_ranks({"SM_CURRENT_HOST": "algo-1"})
    assert (ranks.world_size, ranks.is_writer, ranks.host) == (1, True, "algo-1")
    tensor = torch.ones(2)
    assert ranks.add(tensor) is tensor
    assert ranks.gather("mine") == ["mine"]


@pytest.mark.parametrize("missing", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_incomplete_launcher_is_named(missing):
    variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    del variables[missing]
    with pytest.raises(ConfigurationError, match=missing):
        read_ranks(variables)
