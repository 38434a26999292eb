"""What was damaged on the disk ends a stage in a line with a remedy, or is made again."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny_project as tiny
import torch

from mar.files import seal, weights
from mar.files.atomic import digest
from mar.files.seal import DamagedFileError
from stages import failures, runner, train_loop, work


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.unlink()  # the same file may be elsewhere, by a hard link
    path.write_bytes(content)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[:-100])


def empty(path: Path) -> None:
    path.unlink()
    path.touch()


DAMAGES = [flip, truncate, empty]
INPUTS = [
    ("encode", "prepare/manifest.parquet"),
    ("encode", "train_tokenizer/tokenizer.safetensors"),
    ("reconstruct", "reference/extractor/statistics.safetensors"),
    ("train_generator", "encode/latents/00001.arrow"),
    ("train_generator", "encode/latents.json"),
    ("train_generator", "train_tokenizer/tokenizer.safetensors"),
    ("train_generator", "encode_text/encoder.json"),
    ("sample", "train_generator/ema.safetensors"),
    ("sample", "train_tokenizer/tokenizer.safetensors"),
    ("evaluate", "sample/samples/00001.arrow"),
    ("evaluate", "reference/extractor/classifier.safetensors"),
    ("evaluate", "reference/extractor/statistics.safetensors"),
    ("evaluate", "reference/extractor/reference.json"),
]


@pytest.fixture
def made(project: Path, finished: Path) -> Path:
    """Return a project in which every stage has run, which is the present folder."""
    shutil.copytree(finished / "out", project / "out")
    return project


@pytest.mark.parametrize(("stage", "name"), INPUTS)
def test_a_damaged_input_is_never_used(stage: str, name: str, made: Path) -> None:
    path = Path("out", name)
    shutil.rmtree(made / "out" / stage)
    flip(path)
    with pytest.raises(
        DamagedFileError, match=r"is damaged: its content has the SHA-256"
    ) as raised:
        tiny.run_stage(stage)
    assert raised.value.path == path
    assert not list((made / "out" / stage).rglob("metrics.json"))


@pytest.mark.parametrize("text", ["", "[", '{"a": '])
def test_damaged_class_names_are_named(text: str, made: Path) -> None:
    Path("out/prepare/classes.json").write_text(text)
    for stage in ("sample", "evaluate"):
        with pytest.raises(ValueError, match=r"out/prepare/classes\.json is damaged"):
            tiny.run_stage(stage)


# What an earlier start has left


@pytest.mark.parametrize(
    ("stage", "folder"), [("encode", "out/encode/latents"), ("sample", "out/sample/samples")]
)
def test_damaged_shards_of_an_earlier_start_are_made_again(
    stage: str, folder: str, made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {path.name: digest(path) for path in Path(folder).iterdir()}
    kept = work.open_folder(stage, work.input_digests(stage)) / Path(folder).name
    shutil.copytree(folder, kept)
    for damage, name in zip(DAMAGES, sorted(before), strict=False):
        damage(kept / name)
    shutil.rmtree(f"out/{stage}")
    tiny.run_stage(stage)
    said = [line for line in capfd.readouterr().err.splitlines() if "made again" in line]
    assert len(said) == len(before)
    for line, name in zip(said, sorted(before), strict=True):
        assert line.startswith(f"{stage}: {kept / name} ")
    assert {path.name: digest(path) for path in Path(folder).iterdir()} == before


def test_a_damaged_sign_that_a_stage_has_finished_is_said(
    made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = Path("work/encode/0123456789abcdef")
    folder.mkdir(parents=True)
    for content in (b"", b"{", b"\xff", b"null"):
        (folder / work.FINISHED).write_bytes(content)
        work.remove_recorded()
        assert f"{folder}/finished" in capfd.readouterr().err
        assert folder.is_dir()
    work.remove_recorded()
    assert not capfd.readouterr().err


def test_a_damaged_lock_file_is_named(made: Path) -> None:
    for text in ("stages: [", "\t", "5"):
        Path("dvc.lock").write_text(text)
        with pytest.raises(ValueError, match=r"dvc\.lock (is not valid YAML|must hold)"):
            work.input_digests("encode")


# Checkpoints


@pytest.fixture
def stopped(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the work folder of a training that has kept two checkpoints, and has not finished."""
    shutil.rmtree("out/train_generator")
    monkeypatch.setattr(train_loop._Interval, "due", lambda interval: True)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "_write_curves", stop)
        with pytest.raises(KeyboardInterrupt):
            tiny.run_stage("train_generator")
    (folder,) = Path("work/train_generator").glob("*/")
    return folder


def checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints, the newest last."""
    return sorted((folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (flip, "checkpoint.json"),
        (flip, "__0_0.distcp"),
        (truncate, "__0_0.distcp"),
        (empty, ".metadata"),
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None],
    file: str,
    stopped: Path,
    finished: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    before, last = checkpoints(stopped)
    assert last.name == "step-000000006"
    damage(last / file)
    tiny.run_stage("train_generator")
    said = capfd.readouterr().err
    assert f"train_generator: {last}/{file} is damaged" in said or (
        f"train_generator: {last}/{file} holds no digest" in said
    )
    assert f"; {last} is removed" in said
    step = int(before.name.removeprefix("step-"))
    assert f"train_generator: continuing from step {step} of 6" in said
    check_weights(finished)


def test_without_a_whole_checkpoint_a_training_begins_again(
    stopped: Path, finished: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in checkpoints(stopped):
        truncate(folder / "checkpoint.json")
    tiny.run_stage("train_generator")
    said = capfd.readouterr().err
    assert said.count(" is removed") == 2
    assert "train_generator: no other checkpoint is kept, so it begins at step 0" in said
    check_weights(finished)


def test_a_kill_while_a_checkpoint_is_written_leaves_one(stopped: Path, finished: Path) -> None:
    _, last = checkpoints(stopped)
    (last / "checkpoint.json").unlink()
    last.rename(last.with_name(f"{last.name}.partial"))
    tiny.run_stage("train_generator")
    check_weights(finished)


def check_weights(finished: Path) -> None:
    for name in ("generator.safetensors", "ema.safetensors"):
        assert digest(Path("out/train_generator", name)) == digest(
            finished / "out/train_generator" / name
        )


# What is said


def end(name: str, error: Exception, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """Return the lines that a stage says which ends with an error."""

    def fail(running: object) -> None:
        raise error

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit):
            runner.start(name, fail)
    finally:
        signal.signal(signal.SIGTERM, before)
    return capfd.readouterr().err.splitlines()


def allocate() -> None:
    torch.empty(1 << 50)


def allocate_array() -> None:
    bytearray(1 << 60)


@pytest.mark.parametrize("fill", [allocate, allocate_array])
def test_memory_that_does_not_suffice_on_a_cpu_names_what_to_make_smaller(
    fill: Callable[[], None], made: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised:
        fill()
    said = [line for line in end("encode", raised.value, capfd) if line.startswith("encode: ")]
    (line,) = said
    assert line.startswith("encode: there is not enough memory (")
    assert "a smaller latents.batch_size" in line


def test_a_whole_shard_is_not_called_damaged_where_memory_is_short(made: Path) -> None:
    """Mapping it fails, which says nothing about the file."""
    code = (
        "import resource, sys; from pathlib import Path; from mar.files.arrow import open_arrow\n"
        "path = Path(sys.argv[1]); size = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "path.open('ab').truncate(1 << 34)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 28),) * 2)\n"
        "try: open_arrow(path)\n"
        "except MemoryError as error: print(error)\n"
    )
    path = made / "out/encode/latents/00000.arrow"
    found = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert found.stdout == f"{path} does not fit into the memory that is left\n"


def test_a_fault_of_the_code_keeps_its_traceback() -> None:
    for error in (RuntimeError("shapes do not match"), KeyError("a"), AssertionError()):
        assert failures.explain("encode", error) is None


@pytest.mark.skipif(shutil.which("git") is None, reason="DVC projects need git here")
@pytest.mark.parametrize("link", ["copy", "hardlink"])
def test_the_remedy_works(link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands are typed as they are told, in a project whose cache is damaged or is not."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(tiny.ROOT))
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    Path("make.py").write_text(
        "from pathlib import Path\nimport torch\nfrom torch import nn\n"
        "from mar.files import weights\n"
        "torch.manual_seed(0)\n"
        "for name in 'ab':\n"
        "    weights.save(Path('out/fit', name), nn.Linear(2, 3), {'name': name})\n"
    )
    stage = {"cmd": "python make.py", "deps": ["make.py"], "outs": ["out/fit"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"fit": stage}}))
    for command in ("dvc init -q --no-scm", f"dvc config cache.type {link}", "dvc repro -q"):
        subprocess.run(command.split(), check=True)
    path = Path("out/fit/a")
    before = path.read_bytes()
    damaged = bytearray(before)
    damaged[-3] ^= 1
    path.chmod(0o644)
    path.write_bytes(damaged)  # in place: the cache's copy as well, where it is a hard link
    with pytest.raises(DamagedFileError) as raised:
        weights.load(path)
    _, told = failures.explain("fit", raised.value) or []
    assert ("the copy in DVC's cache is damaged as well" in told) == (link == "hardlink")
    assert ("dvc checkout" in told) == (link == "copy")
    commands = told[told.index("rm -f") :].removesuffix(", then the same command")
    subprocess.run(commands, shell=True, check=True, capture_output=True)
    assert path.read_bytes() == before
    weights.load(path)
    shutil.rmtree("out")
    subprocess.run(["dvc", "checkout", "-q"], check=True)
    assert path.read_bytes() == before  # so is the cache's copy


def test_a_damaged_file_that_no_stage_makes_has_a_remedy(made: Path) -> None:
    Path("other.json").touch()
    with pytest.raises(DamagedFileError) as raised:
        seal.read_json(Path("other.json"))
    _, told = failures.explain("encode", raised.value) or []
    assert told == "remove other.json, and run again what made it"
