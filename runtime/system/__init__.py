"""Everything that differs between Linux, macOS and Windows.

No other module asks which system this is, opens /proc or /sys, or uses a call that one of the three lacks: a test
searches the sources for it. Each function takes what it reads as a parameter (a root folder for /proc and /sys, a
reader of sysctl values, a snapshot of psutil), so that all three systems are tested on Linux with prepared answers.
docs/platforms.md says which claims were tried on the real system.
"""

import sys
from typing import Literal

SystemName = Literal["linux", "macos", "windows", "other"]

_NAMES: dict[str, SystemName] = {"linux": "linux", "darwin": "macos", "win32": "windows"}


def system_name() -> SystemName:
    """The system that this process runs on. Under WSL it is linux."""
    return _NAMES.get(sys.platform, "other")
