"""What is worth saying of captions, and what in them looks like a mistake."""

from collections import Counter
from collections.abc import Sequence

from mar.data.manifest import Rows


EXAMPLES = 5


def caption_remarks(rows: Rows) -> list[str]:
    """Say how many captions there are and how long, with different ones as examples."""
    captions = rows.captions() or []
    texts = [text for each in captions for text in each]
    if not texts:
        return []
    lengths = sorted(len(text.split()) for text in texts)
    half, most = (lengths[int(share * (len(lengths) - 1))] for share in (0.5, 0.95))
    different = list(dict.fromkeys(texts))
    step = max(1, len(different) // EXAMPLES)
    shown = "\n".join(f"  {text!r}" for text in different[::step][:EXAMPLES])
    return [
        f"{len(texts)} captions of {len(captions)} images; half have up to {half} words, 95 % up "
        f"to {most}, the longest {lengths[-1]}, as\n{shown}"
    ]


def caption_warnings(empty: Sequence[str], rows: Rows) -> list[str]:
    """Say what of the captions is likely a mistake, a sentence each.

    Args:
        empty: Paths of the images that have an empty caption.
        rows: The images that have others.
    """
    warnings: list[str] = []
    if empty:
        warnings.append(f"{len(empty)} images have an empty caption, as {empty[0]}")
    counts = Counter(text for texts in rows.captions() or [] for text in set(texts))
    doubled = {text: count for text, count in counts.items() if count > 1}
    if doubled:
        text = max(doubled, key=lambda key: doubled[key])
        warnings.append(
            f"{sum(doubled.values())} images share their caption with another, {doubled[text]} of "
            f"them {text!r:.80}"
        )
    return warnings
