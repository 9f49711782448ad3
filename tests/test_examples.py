"""The examples of docs/ run as they stand, and are as short as the page says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import path_variables

from dslite import runtime

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.glob("*.py")))
def test_an_example_runs_and_prints(name: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **path_variables(tmp_path)}
    command = [sys.executable, "-W", "error", str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) >= 3


def test_the_library_in_fifteen_lines() -> None:
    assert len((EXAMPLES / "generate.py").read_text(encoding="utf-8").splitlines()) <= 15


def test_every_example_uses_the_public_names_alone() -> None:
    for file in EXAMPLES.glob("*.py"):
        imports = [line for line in file.read_text(encoding="utf-8").splitlines() if "import" in line.split()]
        assert all(line.startswith("from dslite.runtime import ") for line in imports), file.name


def test_the_blocks_of_the_library_page_run_in_order_with_the_public_names_alone(tmp_path: Path) -> None:
    page = (EXAMPLES.parent / "library.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    imports = [line for line in "".join(blocks).splitlines() if "import" in line.split()]
    assert all(line == "import asyncio" or line.startswith("from dslite.runtime import ") for line in imports)
    program = tmp_path / "page.py"
    program.write_text("\n".join(blocks), encoding="utf-8")
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **path_variables(tmp_path)}
    command = [sys.executable, "-W", "error", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "prompt tokens were known" in done.stdout


def test_every_public_name_stands_on_the_library_page() -> None:
    page = (EXAMPLES.parent / "library.md").read_text(encoding="utf-8")
    assert [name for name in runtime.__all__ if name not in page] == []
