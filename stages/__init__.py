"""The stages of the pipeline: one module per stage of dvc.yaml, run as python -m stages.NAME."""

from stages import endings


endings.install()  # before torch is imported, which takes seconds
