"""What is installed is what lies here: the packages and the wheel."""

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("app", "assets", "model", "runtime")


def test_every_package_folder_is_listed_for_the_wheel() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    inits = [file.parent for room in ROOMS for file in (ROOT / room).rglob("__init__.py")]
    assert listed == {"dslite." + ".".join(folder.relative_to(ROOT).parts) for folder in inits}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment into which the wheel of this checkout is installed; dependencies come from the running one."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # a copy: building leaves files that the next wheel would take along
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__"))
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    venv.create(folder / "env", with_pip=False, symlinks=True)
    python = folder / "env" / "bin" / "python"
    (wheel,) = folder.glob("*.whl")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", str(wheel)]
    subprocess.run(install, check=True)
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env"


@pytest.mark.skipif(sys.platform == "win32", reason="paths of a virtual environment differ")
def test_the_wheel_puts_one_name_into_site_packages(installed: Path) -> None:
    (site,) = installed.glob("lib/python*/site-packages")
    names = {path.name for path in site.iterdir()} - {"dependencies.pth", "__pycache__"}
    assert {name for name in names if not name.endswith(".dist-info")} == {"dslite"}


@pytest.mark.skipif(sys.platform == "win32", reason="paths of a virtual environment differ")
def test_the_wheel_answers_with_the_demo_model(installed: Path, tmp_path: Path) -> None:
    command = [
        str(installed / "bin" / "dslite"),
        "complete",
        "-m",
        "demo",
        "-t",
        "0",
        "How do I save a profile?",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "profile" in done.stdout
    where = [str(installed / "bin" / "python"), "-c", "import dslite.app; print(dslite.app.__file__)"]
    assert str(installed) in subprocess.run(where, capture_output=True, text=True, cwd=tmp_path).stdout
