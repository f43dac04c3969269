"""No room, no permission, no lock: a sentence, a documented code, and the last good checkpoint."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs

ENDLESS = resource.RLIM_INFINITY


def limit_files(size: int) -> Callable[[], None]:
    """For `preexec_fn`: no file may grow beyond `size` bytes, and SIGXFSZ is as shells leave it."""

    def apply() -> None:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, ENDLESS))

    return apply


def mount_works() -> bool:
    """A name space of our own with a small file system in it; containers may forbid it."""
    if shutil.which("unshare") is None:
        return False
    tried = ["unshare", "-Urm", "sh", "-c", "mount -t tmpfs -o size=64k none /tmp"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def in_small_disk(kilobytes: int, folder: str, command: list[str]) -> list[str]:
    """`command` with `folder` on a file system of that size; prints afterwards what is on it."""
    script = (
        f"mount -t tmpfs -o size={kilobytes}k none {folder} || exit 99; "
        f'"$@"; code=$?; find {folder} -type f | sort | tail -n 40; '
        f"tar cf left.tar {folder}; exit $code"
    )
    return ["unshare", "-Urm", "sh", "-c", script, "sh", *command]


@pytest.mark.parametrize("way", ["command", "python_command"])
def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(
    job: runs.Job, unbroken: Any, way: str
) -> None:
    if not mount_works():
        pytest.skip("this machine does not let a test mount a small disk")
    job.run_dir.mkdir()
    command = getattr(job, way)
    done = job.run(in_small_disk(640, "run", command()))
    assert done.returncode == 1, done.stderr
    last_line = done.stderr.strip().splitlines()[-1]
    assert "the disk is full. Free some space and run again" in last_line
    assert "checkpoint-" in last_line
    assert "Traceback" not in done.stderr
    safe = runs.announced(done.stderr)
    assert safe is not None
    assert ".tmp-" not in done.stdout, "the failed save must leave no litter"
    # With room again it goes on from there.
    shutil.rmtree(job.run_dir)
    assert subprocess.run(["tar", "xf", "left.tar"], cwd=job.folder, check=False).returncode == 0
    assert max(job.checkpoints()) == safe
    runs.require_sound(job.checkpoints()[safe])
    done = job.run(command(resume=True))
    assert done.returncode == 0, done.stderr
    last, expected = unbroken
    assert runs.outcome(job.checkpoints()[last]) == expected


@pytest.mark.parametrize("kilobytes", [1, 20, 100])
def test_a_limit_on_file_sizes_is_an_error_and_not_the_end(job: runs.Job, kilobytes: int) -> None:
    """Small files fit, then the model does, then all but the optimizer does."""
    done = job.run(job.command(), preexec_fn=limit_files(kilobytes * 1024))
    assert done.returncode == 1, done.stderr
    assert "cannot save run/checkpoint-2" in done.stderr
    assert [p.name for p in job.run_dir.iterdir()] == ["run.lock"]


def test_export_onto_a_full_disk_says_so(job: runs.Job, tmp_path: Path) -> None:
    done = job.run(job.command(max_steps=2))
    assert done.returncode == 0, done.stderr
    target = tmp_path / "model.gguf"
    target.write_bytes(b"what was there before")
    export = [sys.executable, "-c", "from abi_train.cli import main; main()", "export"]
    done = job.run(
        [*export, "run/checkpoint-2", "--output", str(target), "--dtype", "f32"],
        preexec_fn=limit_files(30 * 1024),
    )
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    assert target.read_bytes() == b"what was there before"
    assert [p.name for p in tmp_path.iterdir() if p.name != "job"] == ["model.gguf"]


def test_results_that_cannot_be_written_are_a_failure(job: runs.Job) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is not here")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [str(job.program), "doctor"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert "the output cannot be written" in done.stderr


@pytest.mark.parametrize("way", ["command", "python_command"])
@pytest.mark.parametrize("closed", ["2>&-", "1>&-", "0<&- 1>&- 2>&-"])
def test_closed_streams_put_no_message_into_a_file(
    job: runs.Job, unbroken: Any, closed: str, way: str
) -> None:
    """The first file opened after them would get their numbers.

    A result that cannot go to stdout is a failure, and the run is saved all the same.
    """
    command = getattr(job, way)()
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *command], cwd=job.folder, check=False, timeout=120
    )
    assert done.returncode == (1 if "1>&-" in closed else 0)
    last, expected = unbroken
    assert runs.outcome(job.checkpoints()[last]) == expected
    assert (job.run_dir / "run.lock").stat().st_size == 0


def test_wrong_numbers_stop_the_run_and_leave_the_last_checkpoint(job: runs.Job) -> None:
    """A learning rate that blows the weights up: told at the update, before anything is saved."""
    steep = {"learning_rate": 1e30, "lr_schedule": "constant", "max_grad_norm": 0}
    assert job.run(job.command(max_steps=2)).returncode == 0
    before = runs.outcome(job.checkpoints()[2])
    done = job.run(job.command(resume=True, **steep))
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "step 4" in said and "not finite" in said and "Lower learning_rate" in said, said
    assert list(job.checkpoints()) == [2]
    assert runs.outcome(job.checkpoints()[2]) == before


def test_data_cut_short_under_a_running_program(job: runs.Job) -> None:
    """The file is mapped: what the system sends then is a signal, and still it is one sentence."""
    data = job.folder / "data.bin"
    data.write_bytes(data.read_bytes() * 400)
    with job.start(job.command(epochs=100)) as child:
        assert child.stderr is not None
        while "saved" not in child.stderr.readline():
            pass
        os.truncate(data, 4000)
        said = child.stderr.read()
    assert child.returncode == 1, said
    assert "a file was cut short while it was read" in said.splitlines()[-1]
    for checkpoint in job.checkpoints().values():
        runs.require_sound(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": 43}, ("seed was 42", "43 now")),
        ({"batch_size": 4}, ("batch_size was 2", "4 now")),
        ({"max_seq_len": 8}, ("max_seq_len was 16", "8 now")),
        ({"shuffle": False}, ("shuffle was true", "false now")),
    ],
)
def test_another_run_is_not_resumed(
    job: runs.Job, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    assert job.run(job.command(max_steps=2)).returncode == 0
    done = job.run(job.command(resume=True, **changes))
    assert done.returncode == 1
    for word in words:
        assert word in done.stderr, done.stderr
    assert list(job.checkpoints()) == [2]


def test_other_data_and_other_optimizers_are_not_resumed(job: runs.Job) -> None:
    assert job.run(job.command(max_steps=2, optimizer="sgd")).returncode == 0
    done = job.run(job.command(resume=True))
    assert done.returncode == 1
    assert "has no optimizer.safetensors" in done.stderr and "sgd" in done.stderr
    data = job.folder / "data.bin"
    data.write_bytes(data.read_bytes()[4:] + b"\0\0\0\0")
    done = job.run(job.command(resume=True, optimizer="sgd"))
    assert done.returncode == 1
    assert "data_crc32c was" in done.stderr, done.stderr


def test_paths_with_spaces_and_other_scripts(job: runs.Job, unbroken: Any) -> None:
    """In the C locale too."""
    last, expected = unbroken
    folder = job.folder / "my models" / "日本語 ü"
    folder.mkdir(parents=True)
    shutil.copy(job.folder / "config.json", folder)
    plain = {**os.environ, "LANG": "C", "LC_ALL": "C"}
    for number, command in enumerate((job.command(), job.python_command())):
        command[command.index("config.json")] = str(folder / "config.json")
        command[command.index("run")] = str(folder / f"run {number}")
        done = job.run(command, env=plain)
        assert done.returncode == 0, done.stderr
        found = job.checkpoints_in(folder / f"run {number}")
        assert runs.outcome(found[last]) == expected


def test_a_run_folder_in_use_is_refused_at_once_and_free_after_a_kill(job: runs.Job) -> None:
    with job.start(job.command(epochs=2000)) as first:
        assert first.stderr is not None
        while "saved" not in first.stderr.readline():
            pass
        for command in (job.command(), job.python_command()):
            second = job.run(command)
            assert second.returncode == 1
            assert "another process is training in run" in second.stderr
            assert "choose another folder" in second.stderr
            assert "Traceback" not in second.stderr
        first.kill()
        first.stderr.read()
    again = job.run(job.command(resume=True))
    assert again.returncode == 0, again.stderr


def as_nobody() -> None:
    """For `preexec_fn`: root is asked for no permission, so become somebody else."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)


def reachable(path: Path) -> None:
    """pytest's folders are closed to others; open the way down to `path`."""
    for folder in [path, *path.parents]:
        if folder.stat().st_uid == os.getuid() and str(folder).startswith("/tmp/"):
            folder.chmod(folder.stat().st_mode | 0o055)


def test_an_unwritable_folder_is_named(job: runs.Job) -> None:
    reachable(job.folder)
    job.run_dir.mkdir(mode=0o555)
    done = job.run(job.command(), preexec_fn=as_nobody)
    assert done.returncode == 1, done.stderr
    assert "permission denied" in done.stderr
    assert "run" in done.stderr
    assert list(job.run_dir.iterdir()) == []


def test_a_file_where_the_run_folder_should_be(job: runs.Job) -> None:
    job.run_dir.write_text("mine", encoding="utf-8")
    for command in (job.command(), job.python_command()):
        done = job.run(command)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert job.run_dir.read_text(encoding="utf-8") == "mine"


def test_a_read_only_model_folder_is_enough_to_train_from(job: runs.Job, unbroken: Any) -> None:
    """Nothing is ever written beside the model or the data."""
    done = job.run(job.command(max_steps=2))
    assert done.returncode == 0, done.stderr
    shutil.move(job.run_dir / "checkpoint-2", job.folder / "model")
    shutil.rmtree(job.run_dir)
    work = job.folder / "work"
    work.mkdir()
    work.chmod(0o777)
    reachable(job.folder)
    for path in (job.folder / "model").iterdir():
        path.chmod(0o444)
    (job.folder / "model").chmod(0o555)
    job.folder.chmod(0o555)
    try:
        command = job.command()
        command[command.index("config.json")] = "model"
        command[command.index("run")] = "work/run"
        done = job.run(command, preexec_fn=as_nobody)
        assert done.returncode == 0, done.stderr
        assert max(job.checkpoints_in(work / "run")) == unbroken[0]
    finally:
        job.folder.chmod(0o755)
        (job.folder / "model").chmod(0o755)


def test_a_damaged_newest_checkpoint_is_passed_over_and_named(job: runs.Job, unbroken: Any) -> None:
    last, expected = unbroken
    assert job.run(job.command()).returncode == 0
    for way in (job.command, job.python_command):
        damaged = job.checkpoints()[last] / "optimizer.safetensors"
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 4
        damaged.write_bytes(content)
        done = job.run(way(resume=True))
        assert done.returncode == 0, done.stderr
        assert f"checkpoint-{last}/optimizer.safetensors" in done.stderr
        assert runs.outcome(job.checkpoints()[last]) == expected


def test_no_whole_checkpoint_stops_with_all_names(job: runs.Job) -> None:
    assert job.run(job.command(max_steps=4)).returncode == 0
    for checkpoint in job.checkpoints().values():
        (checkpoint / "model.safetensors").write_bytes(b"cut")
    for way in (job.command, job.python_command):
        done = job.run(way(resume=True))
        assert done.returncode == 1
        assert "checkpoint-4" in done.stderr
        assert "Traceback" not in done.stderr
