"""Tests run one thread per process: the models are tiny, and a test process per core is faster than threads that wait.

Nothing is looked up on a network.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
