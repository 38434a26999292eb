"""What is done behind the program changes no image, fails aloud, and is bounded."""

import threading
from collections.abc import Generator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from sample_configs import sample_config
from tqdm import tqdm

from mar.model.mar import MAR
from mar.sampling.reach import Reach
from mar.sampling.store import SampleSet
from mar.tokenizers.kl import AutoencoderConfig
from mar.tokenizers.registry import build_tokenizer
from stages.background import Background, background
from stages.image_batches import ImageBatches
from stages.runner import Silent
from stages.sample import Generation
from stages.stage import Stage


@pytest.fixture
def thread() -> Generator[Executor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def test_a_piece_of_work_begins_when_the_one_before_is_done(thread: Executor) -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []

    def first() -> None:
        begun.set()
        assert go_on.wait(10)
        done.append(1)

    behind = Background(thread)
    behind.submit(first)
    assert begun.wait(10)
    assert done == []  # the program goes on meanwhile
    threading.Timer(0.05, go_on.set).start()
    behind.submit(lambda: done.append(2))
    assert done[0] == 1
    behind.wait()
    assert done == [1, 2]


@pytest.mark.parametrize("in_thread", [True, False])
def test_errors_reach_the_program_once(thread: Executor, in_thread: bool) -> None:
    def fail() -> None:
        raise ValueError("image 3 holds nan")

    behind = Background(thread if in_thread else None)

    def both() -> None:
        behind.submit(fail)
        behind.wait()

    with pytest.raises(ValueError, match="image 3 holds nan"):
        both()
    behind.wait()
    done: list[int] = []
    behind.submit(lambda: done.append(1))
    behind.wait()
    assert done == [1]


def test_a_cpu_does_all_at_once() -> None:
    done: list[str] = []
    with background(torch.device("cpu")) as behind:
        behind.submit(lambda: done.append(threading.current_thread().name))
        assert done == [threading.current_thread().name]


def test_shards_are_the_same_when_decoded_in_the_background(
    tiny_model: MAR, thread: Executor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = build_tokenizer(
        AutoencoderConfig(
            kind="kl",
            latent_channels=2,
            base_channels=8,
            channel_multipliers=[1, 2],
            num_res_blocks=1,
            encoder_attention=False,
            kl_weight=1e-6,
        )
    )
    tokenizer.initialize(torch.Generator().manual_seed(0))
    stage = Stage("sample", tmp_path, tmp_path, torch.device("cpu"), Silent())
    threads: list[str] = []
    tokenizer.register_forward_pre_hook(lambda *_: None)
    decode = tokenizer.decode

    def watched(latents: torch.Tensor) -> torch.Tensor:
        threads.append(threading.current_thread().name)
        if len(latents) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return decode(latents)

    for name, executor in (("plain", None), ("behind", thread)):
        tokenizer.decode = decode if executor is None else watched
        generation = Generation(
            tiny_model,
            tokenizer.eval(),
            torch.arange(7) % 5,
            None,
            sample_config(num_images=7),
            Reach(100.0, 1.7),
            ImageBatches("sample", 2),
            ImageBatches("sample", 2),
        )
        behind = Background(executor)
        with tqdm(total=7, disable=True) as progress:
            for number, shard in enumerate(torch.arange(7).split(5)):
                path = tmp_path / name / f"{number:05d}.arrow"
                path.parent.mkdir(exist_ok=True)
                generation.write(stage, path, shard, progress, behind)
            behind.wait()
        assert generation.reach.share == 0
    assert threading.current_thread().name not in threads
    assert "not enough memory for 2 images at a time; trying 1" in capsys.readouterr().err
    plain, other = (SampleSet(tmp_path / name) for name in ("plain", "behind"))
    assert len(plain) == len(other) == 7
    difference = plain.stack(list(range(7))).int() - other.stack(list(range(7))).int()
    assert difference.abs().max() <= 1  # decoded one by one, a rounding may fall otherwise
