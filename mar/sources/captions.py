"""The captions of an image, as whatever a file or a column has for them."""

from typing import cast


CLASS = "image"  # the one class of images that have captions and no classes


def read_texts(value: object, place: str) -> list[str]:
    """Return a caption or several, white space as one blank each; empty ones are kept as "".

    Raises:
        ValueError: it is something else; the message begins with the place.
    """
    values = cast(list[object], value) if isinstance(value, list) else [value]
    if not all(isinstance(each, str) or each is None for each in values):
        raise ValueError(f"{place}: its caption is {value!r:.80}, expected text or a list of texts")
    return [" ".join(cast(str, each or "").split()) for each in values]
