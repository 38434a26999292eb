"""The stages of the pipeline: one module per stage of dvc.yaml, run as python -m stages.NAME."""

import gc

from stages import endings


# Imports make a million objects and no garbage. With 700 new ones between two looks of the
# collector, Python's default, looking for it is a tenth of a program's start.
gc.set_threshold(10_000)
endings.install("stages")  # before torch is imported, which takes seconds
