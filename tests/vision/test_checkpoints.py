"""A training that is killed and started again ends with the weights of one that was not.

KILLS=10 python -m pytest tests/vision/test_checkpoints.py
"""

import os
import random
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from opslib.specs import TrainingSpec
from opslib.vision import checkpoints
from opslib.vision.checkpoints import Checkpoint, Interrupted, Interruption, training_identity
from opslib.vision.fitting import Course, fit
from tests.vision.test_distributed import Host, start_hosts, weights
from tests.vision.test_training import clusters, head_problem

KILLS = int(os.environ.get("KILLS", "1"))
EPOCHS = 600
LONG = ("--epochs", EPOCHS, "--patience", EPOCHS, "--learning_rate", 0.0001)
ON_TWO_HOSTS = ("--epochs", 60, "--patience", 60, "--learning_rate", 0.0001, "--views", 1, "--batch_size", 18)
SPEC = TrainingSpec(epochs=12, batch_size=16, learning_rate=0.01, patience=12)


@pytest.fixture(scope="module")
def uninterrupted(sample, tmp_path_factory) -> torch.Tensor:
    """The weights of a training that nobody disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, output = Host(sample, folder, *LONG).end()
    assert code == 0, output
    return weights(folder)


def killed_after_saving(host: Host, checkpoints: Path, moment: random.Random) -> tuple[int, str]:
    """Kill a process within a second after it has saved its state, and return its exit code and output."""

    def saved() -> list[int]:
        return [path.stat().st_mtime_ns for path in checkpoints.glob("training/*/state.pt")]

    def kill() -> None:
        before = saved()
        while saved() == before and host.process.poll() is None:
            time.sleep(0.005)
        time.sleep(moment.random())
        host.process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    ended = host.end()
    killer.join()
    return ended


def test_killed_training_ends_with_the_same_weights(sample, tmp_path, uninterrupted):
    moment = random.Random(KILLS)
    arguments = (sample, tmp_path / "model", *LONG, "--checkpoint_dir", tmp_path / "checkpoints")
    resumed, kills = set(), 0
    while kills < KILLS:
        code, output = killed_after_saving(Host(*arguments), tmp_path / "checkpoints", moment)
        kills += code == -signal.SIGKILL
        if code == 0:  # it ended between two kills: once more from the start
            assert torch.equal(weights(tmp_path / "model"), uninterrupted)
            shutil.rmtree(tmp_path / "checkpoints")
        resumed |= set(re.findall(r"resumed after epoch (\d+)", output))
    code, output = Host(*arguments).end()
    assert code == 0, output
    assert torch.equal(weights(tmp_path / "model"), uninterrupted)
    resumed |= set(re.findall(r"resumed after epoch (\d+)", output))
    assert resumed - {str(EPOCHS)}, "no kill fell within the training"


def test_sigterm_saves_and_ends_in_good_order(sample, tmp_path, uninterrupted):
    arguments = (sample, tmp_path / "model", *LONG, "--checkpoint_dir", tmp_path / "checkpoints")
    host = Host(*arguments)
    host.wait_for("epoch 5/")
    host.process.send_signal(signal.SIGTERM)
    code, output = host.end()
    assert code == 143
    assert output.endswith("interrupted: what was done is saved, and the same command goes on from there\n")
    assert not (tmp_path / "model" / "model.pth").exists()
    code, output = Host(*arguments).end()
    assert code == 0, output
    assert "resumed after epoch" in output
    assert torch.equal(weights(tmp_path / "model"), uninterrupted)


def test_several_hosts_go_on_where_they_stopped(sample, tmp_path):
    for host in start_hosts([sample, sample], tmp_path / "undisturbed", *ON_TWO_HOSTS):
        code, output = host.end()
        assert code == 0, output
    arguments = ([sample, sample], tmp_path / "model", *ON_TWO_HOSTS, "--checkpoint_dir", tmp_path / "checkpoints")
    first, second = start_hosts(*arguments)
    first.wait_for("epoch 5/")
    second.process.send_signal(signal.SIGTERM)  # one is asked, both end at the same step
    assert first.end()[0] == second.end()[0] == 143
    first, second = (host.end() for host in start_hosts(*arguments))
    assert (first[0], second[0]) == (0, 0), first[1] + second[1]
    assert "resumed after epoch" in first[1]
    assert torch.equal(weights(tmp_path / "model"), weights(tmp_path / "undisturbed"))


class AskedAtStep(Interruption):
    """Ends a training at a step of an epoch, which need not be its last."""

    def __init__(self, step: int) -> None:
        self._left = step

    @property
    def requested(self) -> bool:
        self._left -= 1
        return self._left <= 0


def trained(problem, checkpoint: Checkpoint, interruption: Interruption | None = None) -> torch.Tensor:
    fit(problem, SPEC, Course(checkpoint=checkpoint, interruption=interruption or Interruption()))
    return torch.cat([parameter.detach().flatten() for parameter in problem.module.parameters()])


def problem() -> object:
    return head_problem(clusters(noise=2.5), clusters(40, noise=2.5, seed=1), 3, SPEC)


@pytest.mark.parametrize("step", [1, 7, 20])
def test_training_goes_on_within_an_epoch(tmp_path, step):
    expected = trained(problem(), Checkpoint())
    checkpoint = Checkpoint(tmp_path / "state.pt")
    with pytest.raises(Interrupted):
        trained(problem(), checkpoint, AskedAtStep(step))
    assert torch.equal(trained(problem(), checkpoint), expected)


def one_byte_changed(whole: bytes) -> bytes:
    return whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda whole: whole[:-500], one_byte_changed])
def test_damaged_checkpoint_is_said_and_not_used(tmp_path, damage):
    expected = trained(problem(), Checkpoint())
    path, lines = tmp_path / "state.pt", []
    checkpoint = Checkpoint(path, lines.append)
    with pytest.raises(Interrupted):
        trained(problem(), checkpoint, AskedAtStep(9))
    path.write_bytes(damage(path.read_bytes()))
    assert torch.equal(trained(problem(), checkpoint), expected)
    assert "is damaged and not used" in lines[0]


def test_checkpoint_of_another_layout_is_said_and_not_used(tmp_path):
    expected, lines = trained(problem(), Checkpoint(tmp_path / "state.pt")), []
    saved = Checkpoint(tmp_path / "state.pt").load()
    for change in ({"weights": {"other": torch.zeros(1)}}, {"optimizer": {}}, {"more": 1}):
        Checkpoint(tmp_path / "state.pt").save(lambda change=change: {**saved, **change}, now=True)
        assert torch.equal(trained(problem(), Checkpoint(tmp_path / "state.pt", lines.append)), expected)
        assert "of another layout and not used" in lines[-1]


def test_finished_training_is_not_trained_again(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.pt")
    first = trained(problem(), checkpoint)
    again = problem()
    monkeypatch.setattr(again, "train_scores", None)
    assert torch.equal(trained(again, checkpoint), first)


def test_state_appears_whole(tmp_path, monkeypatch):
    checkpoint = Checkpoint(tmp_path / "state.pt")
    checkpoint.save(lambda: {"epoch": 1}, now=True)
    checkpoint.save(lambda: {"epoch": 2})  # too soon after the last one
    assert checkpoint.load() == {"epoch": 1}
    monkeypatch.setattr(checkpoints.os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoint.save(lambda: {"epoch": 3}, now=True)
    assert checkpoint.load() == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_identity_is_that_of_the_training():
    names = {
        training_identity({"seed": seed}, classes, {"a": size})
        for seed, classes, size in ((0, ["x"], 1), (1, ["x"], 1), (0, ["y"], 1), (0, ["x"], 2))
    }
    assert len(names) == 4
    assert training_identity({"a": 1, "b": 2}) == training_identity({"b": 2, "a": 1})
