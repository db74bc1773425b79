"""What a training job leaves in S3: model.tar.gz and output.tar.gz under <S3OutputPath>/<job>/output/.

An empty directory leaves nothing, as on AWS. The hosts' directories are merged into one; where two hosts wrote the same
name, the later host's file wins, which is why hosts should not.
"""

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from opslib.rehearsal.role_storage import RoleStorage, split_uri
from opslib.rehearsal.training.job import TrainingJob

_FAST = 1  # weights hardly compress; the default level takes five times as long


def upload_artifacts(
    job: TrainingJob, model_directories: Iterable[Path], output_directories: Iterable[Path], storage: RoleStorage
) -> None:
    """Upload a job's model and output.

    Raises:
        StorageRefused: the role may not write there, or there is no such bucket.
    """
    bucket, prefix = split_uri(job.output_uri)
    model, output = _files(model_directories), _files(output_directories)
    if job.params["OutputDataConfig"].get("CompressionType") == "NONE":
        job.model_artifacts = f"{job.output_uri}/model/"
        for name, path in model.items():
            if path.is_file():
                storage.write(bucket, f"{prefix}/model/{name}", path.read_bytes())
    elif model:
        storage.write(bucket, f"{prefix}/model.tar.gz", _packed(model))
    if output:
        storage.write(bucket, f"{prefix}/output.tar.gz", _packed(output))


def _files(directories: Iterable[Path]) -> dict[str, Path]:
    return {
        str(path.relative_to(directory)): path
        for directory in directories
        for path in sorted(directory.rglob("*"))
        if path.exists() or path.is_symlink()
    }


def _packed(files: dict[str, Path]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz", compresslevel=_FAST) as archive:
        for name, path in files.items():
            archive.add(path, arcname=name, recursive=False)
    return content.getvalue()
