"""Python runs this in each process that a test under a fake system starts: the fake goes on there."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("fake_systems", Path(__file__).parents[1] / "fake_systems.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
import sys  # noqa: E402  # a dataclass looks up its own module while it is made

sys.modules["fake_systems"] = _MODULE
_SPEC.loader.exec_module(_MODULE)
_MODULE.install()
