"""Benchmarks: what is asked, and what is made of samples; no time is measured here."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from zdm_pipelines_tests.benchmarks import options, report
from zdm_pipelines_tests.benchmarks.case import Figure, Target, seconds, times
from zdm_pipelines_tests.benchmarks.record import COLUMNS, Record

CASES = ("storm", "backfill")


def read(*arguments: str) -> options.Options:
    return options.read(arguments, cases=CASES, about="")


def test_without_a_wish_everything_runs_as_the_cases_have_it() -> None:
    asked = read()
    assert asked.cases == CASES
    assert (asked.rounds, asked.sizes, asked.indexes, asked.keys) == (None, (), (), ())
    assert asked.out == Path(".zdm/bench")


@pytest.mark.parametrize(
    "arguments", [("backfill", "storm"), ("--only", "backfill,storm"), ("backfill", "--only", "storm")]
)
def test_cases_are_named_in_two_ways(arguments: tuple[str, ...]) -> None:
    assert sorted(read(*arguments).cases) == ["backfill", "storm"]


def test_contenders_and_a_quiet_server() -> None:
    asked = read("--contender", "ours strided, 2 at once", "--contender", "touch-update", "--quiet")
    assert asked.contenders == ("ours strided, 2 at once", "touch-update")
    assert asked.quiet
    assert not read().quiet


def test_lists() -> None:
    asked = read("--rows", "5000000,1_000_000", "--indexes", "5,2", "--keys", "uuid,bigint", "--rounds", "4")
    assert asked.sizes == (1_000_000, 5_000_000)
    assert asked.indexes == (2, 5)
    assert asked.keys == ("uuid", "bigint")
    assert asked.rounds == 4


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("strom",), "no case strom; there are storm, backfill"),
        (("--only", "storm,all"), "no case all"),
        (("--rows", "0"), "at least 1"),
        (("--rows", "many"), "--rows"),
        (("--indexes", "6"), "0 to 5"),
        (("--keys", "text"), "'text' is none of bigint, uuid"),
    ],
)
def test_what_is_wrong_is_said(arguments: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read(*arguments)
    assert says in capsys.readouterr().err


FIGURES = [
    Figure(name="time", samples=[1.0, 3.0], show=seconds, group="uuid", subject="ours"),
    Figure(name="time", samples=[2.0, 2.5], show=seconds, group="uuid", subject="theirs"),
    Figure(name="ratio", samples=[0.5, 1.2], show=times, group="uuid", subject="ours", target=Target(at_most=1.0)),
]


def test_what_is_compared_stands_side_by_side_and_targets_below() -> None:
    first, second = report.grids("backfill", FIGURES)
    assert first.title == "backfill, uuid, medians"
    assert list(first.lines) == [["ours", "2.00 s", "0.85 x"], ["theirs", "2.25 s", ""]]
    assert list(second.lines) == [["uuid: ours: ratio", "2", "0.85 x", "1.20 x", "median at most 1.00 x", "yes"]]
    assert report.markdown(first).splitlines()[:3] == [
        "| backfill, uuid, medians | time | ratio |",
        "| --- | --- | --- |",
        "| ours | 2.00 s | 0.85 x |",
    ]


def test_a_run_leaves_every_sample_in_its_folder(tmp_path: Path) -> None:
    record = Record(tmp_path)
    record.add("backfill", FIGURES, 12.3)
    record.add("storm", [Figure(name="p99", samples=[0.004], show=seconds)], 1.0)

    with (record.folder / "figures.csv").open(newline="") as file:
        header, *lines = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert len(lines) == 7
    assert lines[1] == ["backfill", "uuid", "ours", "time", "s", "2", "3.0"]
    figures = json.loads((record.folder / "figures.json").read_text())
    assert figures["cases"]["backfill"]["seconds"] == 12.3
    assert figures["cases"]["storm"]["figures"][0]["samples"] == [0.004]
    assert (record.folder / "tables.md").read_text() == record.markdown()
    for name in ("backfill-uuid.png", "storm.png"):
        assert (record.folder / name).read_bytes().startswith(b"\x89PNG")
