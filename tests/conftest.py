"""Tests run in parallel processes: one thread each, set before anything loads torch."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
