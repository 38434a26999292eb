"""CLIPScore is that of torchmetrics, where that can read the model at all."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_scorers as tiny
import torch
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score

from mar.evaluation.clip import Clip, ClipScorer


PROMPTS = ["a photo of a red dog", "a cat"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_clip(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="module")
def images() -> Tensor:
    rng = torch.Generator().manual_seed(2)
    return torch.randint(256, (4, 3, 16, 16), generator=rng, dtype=torch.uint8)


def by_torchmetrics(folder: Path, images: Tensor, prompts: list[str]) -> float:
    """Return its score, with a model and a processor as `transformers` 4 had them."""
    import transformers as hf

    model: Any = hf.CLIPModel.from_pretrained(folder)
    tokenizer: Any = hf.AutoTokenizer.from_pretrained(folder)
    pictures: Any = hf.CLIPImageProcessor.from_pretrained(folder)

    def process(text: Any = None, images: Any = None, **options: Any) -> Any:
        if images is None:
            return tokenizer(text, **options)
        return pictures(images=images, return_tensors="pt")

    adapted: Any = SimpleNamespace(
        config=model.config,
        get_image_features=lambda pixels: model.get_image_features(pixels).pooler_output,
        get_text_features=lambda ids, mask: model.get_text_features(ids, mask).pooler_output,
    )
    adapted.to = lambda _: adapted
    with torch.no_grad():
        return float(clip_score(images, prompts, lambda: (adapted, process)))


def test_a_score_is_that_of_torchmetrics(folder: Path, images: Tensor) -> None:
    clip = Clip(folder, torch.device("cpu"), key="evaluate.clip_score")
    prompts = PROMPTS * 2
    cosines = (clip.images(list(images)) * clip.texts(prompts)).sum(dim=1)
    used = [index for index, cosine in enumerate(cosines.tolist()) if cosine > 0]
    assert used  # torchmetrics cuts the mean at 0, not each score
    scorer = ClipScorer(clip, prompts)
    for index in used:  # in batches of one
        scorer.update(images[index][None], [prompts[index]])
    expected = by_torchmetrics(folder, images[used], [prompts[index] for index in used])
    assert scorer.compute().value == pytest.approx(expected, rel=1e-4)

    whole = ClipScorer(clip, prompts)
    whole.update(images, prompts)
    score = whole.compute()
    assert score.value == pytest.approx(100 * float(cosines.clamp(min=0).mean()), rel=1e-5)
    means = 100 * cosines.clamp(min=0).reshape(2, 2).mean(dim=0)  # of each prompt
    assert score.error == pytest.approx(float(means.std() / 2**0.5), rel=1e-4)


def test_a_long_prompt_is_cut_and_counted(folder: Path) -> None:
    clip = Clip(folder, torch.device("cpu"), key="evaluate.clip_score")
    long = " ".join(["a"] * 30)
    fits = " ".join(["a"] * (tiny.TOKENS - 2))
    assert clip.count_cut([long, fits, "a"]) == 1
    assert torch.allclose(clip.texts([long]), clip.texts([fits]))  # the end mark is kept


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"evaluate\.clip_score: .* cannot be read as CLIPModel"):
        Clip(tmp_path, torch.device("cpu"), key="evaluate.clip_score")
