"""Prefect flows: when and where the stages run."""

from stages import endings


endings.install("pipelines")  # before Prefect is imported, which takes seconds
