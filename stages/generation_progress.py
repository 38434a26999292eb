"""Progress of a generation: it moves with every generation step, not only with whole images."""

from collections.abc import Callable

from tqdm import tqdm

from mar import distributed


FORMAT = "{l_bar}{bar}| {n:.0f}/{total:.0f} images [{elapsed}<{remaining}]"


def generation_bar(name: str, total: int, done: int = 0) -> tqdm:
    """Return a bar that counts images, parts of them included; the main process alone shows it."""
    hidden = not distributed.is_main()
    return tqdm(total=total, initial=done, desc=name, bar_format=FORMAT, disable=hidden)


def step_counter(progress: tqdm, num_images: int, num_tokens: int) -> Callable[[int], None]:
    """Return what `generate_images` calls after each step of a batch.

    Args:
        progress: The bar to move.
        num_images: Images in the batch.
        num_tokens: Tokens of an image.
    """
    shown = 0

    def on_step(num_known: int) -> None:
        nonlocal shown
        progress.update(num_images * (num_known - shown) / num_tokens)
        shown = num_known

    return on_step
