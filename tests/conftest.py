"""Settings of the whole suite."""

import os

import torch
from hypothesis import settings

# Examples are the same on every run and have no deadline: a loaded machine is no failure.
settings.register_profile("dslite", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("dslite")

torch.set_num_threads(min(2, os.cpu_count() or 1))

pytest_plugins = ["support.hub_fixtures"]
