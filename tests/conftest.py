"""Settings of the whole suite."""

import torch
from hypothesis import settings

# Examples are the same on every run and have no deadline: a loaded machine is no failure.
settings.register_profile("dslite", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("dslite")

# The models of the suite are tiny: a second thread has nothing to do, and on a loaded machine waits for long.
torch.set_num_threads(1)

pytest_plugins = ["support.hub_fixtures"]
