"""Bandwidths: measured, kept, measured again when that is due, by one process at a time."""

import json
import threading
from pathlib import Path

import pytest

from dslite.runtime.planning import bandwidth
from dslite.runtime.planning.bandwidth import (
    Bandwidths,
    bandwidths,
    measure_all,
    measure_disk,
    measure_ram,
    note_read_rate,
)

DAY = 86_400.0


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


class Bench:
    """A machine that is measured in no time, with a clock that is set by hand."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.ram = 10e9
        self.time = 1e9

    def __call__(self, device: str) -> Bandwidths:
        self.made.append(device)
        return Bandwidths(ram=self.ram, disk=1e9, pcie=0.0, gpu=0.0)

    def read(self, machine: str = "this", *, refresh: bool = False) -> float:
        return bandwidths(machine, "cpu", refresh=refresh, measure=self, now=lambda: self.time).ram


@pytest.fixture
def bench(hub_home: Path) -> Bench:
    return Bench()


def test_bandwidths_are_measured_once_and_again_on_request_or_on_another_machine(bench: Bench) -> None:
    first = bench.read()
    assert bench.read() == first
    assert len(bench.made) == 1
    bench.read(refresh=True)
    bench.read("another")
    bench.read()
    assert len(bench.made) == 3


def test_the_best_of_several_measurements_counts(bench: Bench) -> None:
    assert bench.read() == 10e9  # measured on a busy machine
    bench.ram = 40e9
    assert bench.read(refresh=True) == 40e9
    bench.ram = 12e9  # busy again
    assert bench.read(refresh=True) == 40e9
    assert bench.read() == 40e9


def test_measurements_are_repeated_at_growing_distances(bench: Bench) -> None:
    made = []
    for _ in range(200):  # each half day
        bench.read()
        made.append(len(bench.made))
        bench.time += DAY / 2
    assert made[:8] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert made[-1] <= 10


def test_a_disk_that_was_exchanged_for_a_slower_one_is_seen_after_some_measurements(bench: Bench) -> None:
    bench.read()
    bench.ram = 2e9
    assert [bench.read(refresh=True) for _ in range(5)] == [10e9] * 4 + [2e9]


@pytest.mark.parametrize(
    ("rate", "age", "again"),
    [(9e9, DAY / 2, False), (10.5e9, DAY / 2, False), (15e9, DAY / 2, True), (15e9, 60.0, False)],
)
def test_an_answer_that_reads_faster_calls_for_a_new_measurement(
    bench: Bench, rate: float, age: float, again: bool
) -> None:
    bench.read()
    bench.time += age
    assert note_read_rate("this", "ram", rate, now=lambda: bench.time) == again
    bench.ram = 40e9
    assert bench.read() == (40e9 if again else 10e9)
    assert len(bench.made) == 1 + again


def test_an_answer_before_the_first_measurement_calls_for_nothing(bench: Bench) -> None:
    assert not note_read_rate("this", "ram", 1e12)


def test_a_wrong_clock_does_not_keep_a_measurement_for_good(bench: Bench) -> None:
    bench.time = 4e9
    bench.read()
    bench.time = 1e9
    bench.read()
    assert len(bench.made) == 2


def test_two_at_once_measure_one_after_the_other_and_once(bench: Bench) -> None:
    started, go = threading.Event(), threading.Event()
    found = []

    def measure(device: str) -> Bandwidths:
        started.set()
        assert go.wait(60)
        return bench(device)

    def ask() -> None:
        found.append(bandwidths("this", "cpu", measure=measure).ram)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(60)
    assert found == [10e9, 10e9]
    assert len(bench.made) == 1


def test_a_record_that_cannot_be_written_costs_a_measurement_each_time(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "dslite-cache").write_text("no folder")
    assert bench.read() == bench.read() == 10e9
    assert len(bench.made) == 2


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "[]",
        '{"machine": "this"}',
        '{"machine": "this", "ram": "x"}',
        '{"this": 5}',
        '{"this": [null, {"ram": 1}]}',
        '{"this": [{"ram": "x", "disk": 1, "pcie": 0, "gpu": 0, "time": 1}]}',
    ],
)
def test_a_damaged_record_is_measured_anew(bench: Bench, tmp_path: Path, damage: str) -> None:
    write(tmp_path / "dslite-cache", {"bandwidths.json": damage})
    bench.read()
    assert len(bench.made) == 1
    assert json.loads((tmp_path / "dslite-cache" / "bandwidths.json").read_text())["this"][0]["ram"] > 0


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, hub_home: Path) -> None:
    """Measurements of a few megabytes."""
    monkeypatch.setattr(bandwidth, "_RAM_BYTES", 8 << 20)
    monkeypatch.setattr(bandwidth, "_DISK_BYTES", 16 << 20)


@pytest.mark.usefixtures("small")
def test_measuring_the_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    place = tmp_path / "disk"
    place.mkdir()
    assert measure_disk(place) > 0
    assert list(place.iterdir()) == []
    assert measure_disk(tmp_path / "nowhere") == 0


@pytest.mark.usefixtures("small")
def test_a_machine_without_a_gpu_has_no_bandwidth_of_one() -> None:
    measured = measure_all("cpu")
    assert measured.ram > 0
    assert (measured.pcie, measured.gpu) == (0, 0)


@pytest.mark.usefixtures("small")
def test_memory_is_read_at_the_speed_of_memory() -> None:
    assert 1e8 < measure_ram() < 1e13
