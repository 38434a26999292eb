"""What a section of `params.yaml` says of a file that others made."""

from pathlib import Path

from pydantic import Field

from mar.config import Config, PathText, Sha256


class ReleasedFile(Config):
    """Where a file is, and which one it must be."""

    path: PathText = Field(description="the file, absolute or from the repository")
    sha256: Sha256 | None = Field(description="its SHA-256; null checks nothing")

    def place(self, base: Path) -> Path:
        """Return the file's path, which begins at `base` if it is relative."""
        return base / Path(self.path).expanduser()
