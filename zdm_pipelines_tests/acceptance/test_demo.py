"""The demo is the whole path as a user walks it: web UI's requests, daemon, backfill, gate, live traffic."""

from __future__ import annotations

import json
import subprocess
import sys

import psutil
import pytest

PHASES = {"plan", "expand", "backfill", "validate", "switch_reads", "contract"}


@pytest.mark.slow
@pytest.mark.timeout(540)
def test_demo_migrates_under_traffic_and_leaves_nothing_running(tmp_path):
    figures, folder = tmp_path / "figures.json", tmp_path / "demo"
    command = [sys.executable, "-m", "zdm_pipelines.sandbox.demo", "--exit", "--rows", "5000"]

    done = subprocess.run(
        [*command, "--folder", folder, "--json", figures], capture_output=True, text=True, timeout=500, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(figures.read_text())
    assert seen["failed_queries"] == 0
    assert seen["wrong_answers"] == 0
    assert seen["queries"] > 1_000
    assert seen["state"] == "contracted"
    assert seen["parity"]["agrees"]
    assert seen["rows"] == 5000
    # Live writes fill some rows before the backfill comes to them.
    assert 0 < seen["rows_moved"] <= 5000
    assert set(seen["seconds"]) == PHASES
    assert "is refused" in done.stdout
    left = [p.info["cmdline"] for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in str(p.info["cmdline"])]
    assert not left


def test_demo_says_what_is_wrong_with_its_options():
    command = [sys.executable, "-m", "zdm_pipelines.sandbox.demo", "--rows", "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "--rows" in done.stderr
