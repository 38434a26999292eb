"""Ask git about the project; a git that is missing or that refuses stops nothing."""

import subprocess


def run(*arguments: str) -> str:
    """Return what a git command prints, or nothing where it fails or git is not installed."""
    try:
        result = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=False, errors="replace"
        )
    except OSError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def complaint() -> str:
    """Return what git says where it refuses to read a repository of another user, with its advice.

    Outside a repository, or without git, there is nothing to say: both are a choice.
    """
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return result.stderr.strip() if "safe.directory" in result.stderr else ""
