"""The fakes of macOS and Windows show what they should, and dslite's commands run under them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import fake_systems
from support.paths import path_variables

SITE = Path(fake_systems.__file__).with_name("fake_site")
# Runs as a module of dslite, as which only the fake is seen.
PROBE = """
import sys, types
code = '''
import os, sys, signal, mmap, ctypes
found = {"platform": sys.platform, "name": os.name}
found["missing"] = [n for n in ("preadv", "pread", "statvfs", "fork", "getpid") if not hasattr(os, n)]
found["signals"] = [n for n in ("SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, n)]
found["huge"] = hasattr(mmap, "MADV_HUGEPAGE")
try:
    import fcntl
    found["fcntl"] = True
except ImportError:
    found["fcntl"] = False
def attempt(call):
    try:
        call()
        return "done"
    except (OSError, TypeError) as error:
        return type(error).__name__
found["proc"] = attempt(lambda: open("/proc/self/maps").close())
found["colon"] = attempt(lambda: open(folder + "/a:b", "w").close())
found["device"] = attempt(lambda: open(folder + "/nul.txt", "w").close())
with open(folder + "/open", "w") as stream:
    found["replace"] = attempt(lambda: os.replace(folder + "/open", folder + "/other"))
found["handle"] = attempt(lambda: ctypes.CDLL(None))
'''
module = types.ModuleType("dslite.probe")
module.folder = sys.argv[1]
exec(compile(code, "probe", "exec"), module.__dict__)
import json, os
real = {"platform": sys.platform, "name": os.name, "preadv": hasattr(os, "preadv")}
print(json.dumps([module.found, real]))
"""


def under(system: str, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        **path_variables(folder),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "1",
        "FAKE_SYSTEM": system,
        "PYTHONPATH": str(SITE),
        "PYTHONIOENCODING": "cp1252" if system == "windows" else "utf-8",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, *command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=600,
    )


EXPECTED = {
    "macos": {
        "platform": "darwin",
        "name": "posix",
        "missing": ["preadv"],
        "signals": ["SIGINT", "SIGHUP"],
        "huge": False,
        "fcntl": True,
        "proc": "FileNotFoundError",
        "colon": "done",
        "device": "done",
        "replace": "done",
        "handle": "done",
    },
    "windows": {
        "platform": "win32",
        "name": "nt",
        "missing": ["preadv", "pread", "statvfs", "fork"],
        "signals": ["SIGINT", "SIGBREAK"],
        "huge": False,
        "fcntl": False,
        "proc": "FileNotFoundError",
        "colon": "OSError",
        "device": "OSError",
        "replace": "PermissionError",
        "handle": "TypeError",
    },
}


@pytest.mark.parametrize("system", EXPECTED)
def test_a_fake_shows_dslite_the_system_and_leaves_the_rest_alone(system: str, tmp_path: Path) -> None:
    done = under(system, "-c", PROBE, str(tmp_path), folder=tmp_path)
    assert done.stderr == ""
    found, real = json.loads(done.stdout)
    assert found == EXPECTED[system]
    assert real == {"platform": sys.platform, "name": os.name, "preadv": hasattr(os, "preadv")}


COMMANDS = [
    ("complete", "-m", "demo", "hi", "-n", "3", "-o", "json"),
    pytest.param(("plan", "-m", "demo", "-o", "json"), marks=pytest.mark.long),
    ("model", "list", "-o", "json"),
    ("session", "list", "-o", "json"),
]


@pytest.mark.parametrize("system", EXPECTED)
@pytest.mark.parametrize("command", COMMANDS, ids=["complete", "plan", "model", "session"])
def test_a_command_works_under_a_fake(system: str, command: tuple[str, ...], tmp_path: Path) -> None:
    done = under(system, "-c", "from dslite.app.cli import main; main()", *command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)
    assert "Traceback" not in done.stderr
