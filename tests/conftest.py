# SPDX-License-Identifier: Apache-2.0
"""What holds for every test: one thread a worker, one seed, deterministic kernels, no network, no screen."""

import os

# before torch, numpy or transformers are imported by anything
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import random

import hypothesis
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
torch.set_num_interop_threads(1)
torch.use_deterministic_algorithms(True)

# the same examples every time, and no test that fails because the machine was busy
hypothesis.settings.register_profile("foundling", derandomize=True, deadline=None, print_blob=True)
hypothesis.settings.load_profile("foundling")


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
