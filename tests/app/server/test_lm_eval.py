"""lm-eval scores the served model as it scores the engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.serving import Server

TESTS = Path(__file__).parents[2]


def test_lm_eval_gives_the_scores_of_the_engine(demo_server: Server, tmp_path: Path) -> None:
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-m", "support.lm_eval_tasks", demo_server.url, str(tmp_path)],
        env={**os.environ, **environment, "PYTHONPATH": str(TESTS)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    for kind in ("completions", "chat"):
        served, inside = found[kind], found[f"{kind} in process"]
        for task in served:
            assert served[task]["scores"] == pytest.approx(inside[task]["scores"]), task
    choices = [[score for score, _ in answer] for answer in found["completions"]["ten_choices"]["answers"]]
    expected = [[score for score, _ in answer] for answer in found["completions in process"]["ten_choices"]["answers"]]
    assert [score for row in choices for score in row] == pytest.approx([s for row in expected for s in row], abs=1e-3)
    for kind, task in (("completions", "ten_texts"), ("chat", "ten_answers")):
        assert found[kind][task]["answers"] == found[f"{kind} in process"][task]["answers"]
        assert 0 < found[kind][task]["scores"]["exact_match,none"] < 1
