"""`make weights-check`: its report on the demo and on a model of a fake Hub, on right and on wrong answers."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support.hub_server import HubServer

from dslite.runtime.downloads.download import pull
from dslite.runtime.downloads.hub import parse_model

SCRIPT = Path(__file__).parent / "check.py"


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("weights_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["weights_check"] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args], cwd=folder, capture_output=True, text=True, check=False, timeout=200
    )


def test_the_demo_gets_a_report_and_finds_no_needle(tmp_path: Path) -> None:
    done = run("demo", "--needle", "200,400", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    report = (tmp_path / "weights-report.md").read_text()
    assert "files: a folder has no hashes" in report
    assert "published continuations: none is known of demo" in report
    assert report.count("pass: one way") == 2
    assert report.count("FAIL: needle at") == 6
    assert "FAILED" in done.stdout


def test_a_model_of_the_hub_is_absent_then_right_then_damaged(hub: HubServer, tmp_path: Path) -> None:
    done = run("chat", "--needle", "", folder=tmp_path)
    assert done.returncode == 3
    assert "dslite model pull chat" in done.stderr

    for _ in pull(parse_model("chat")):
        pass
    done = run("chat", "--needle", "", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compared with the Hub" in done.stdout

    folder = next((tmp_path / "hf" / "hub").glob("models--*/snapshots/*"))
    file = next(folder.glob("*.safetensors")).resolve()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    done = run("chat", "--needle", "", folder=tmp_path)
    assert done.returncode == 1
    assert "FAIL: files" in done.stdout


def test_a_needle_is_found_by_who_reads_and_missed_by_who_does_not(check: ModuleType) -> None:
    def reader(text: str) -> tuple[str, float]:
        question = text.rsplit("\n", 1)[-1]
        line = next(line for line in text.split("\n") if line.startswith(question) and line != question)
        return line.removeprefix(question), 1.0

    def words(text: str) -> int:
        return len(text.split())

    for place in (0.1, 0.5, 0.9):
        text = check.hidden(words, 1000, place)
        assert 850 < words(text) <= 1000
        at = text.index("The code of the north gate is 4817.") / len(text)
        assert abs(at - place) < 0.03
        assert check.needle(reader, words, 1000, place).passed
        assert not check.needle(lambda _: (" 1234.", 1.0), words, 1000, place).passed


def test_published_answers_are_looked_up_by_the_models_name(check: ModuleType) -> None:
    known = {made["model"].split(" ")[0] for made in check.selftest.read_published()["sets"]}
    assert parse_model("base").repo_id in known
