"""``procserver cache`` beside a running service."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from live import ROOT, LiveServer
from test_ranking import build, post


def run(*arguments: str, config: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "procserver", "cache", *arguments],
        cwd=ROOT,
        env={**os.environ, "PROCSERVER_CONFIG": config},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_inspect(ranking: LiveServer) -> None:
    config = str(ranking.config)
    found = run("inspect", config=config)
    assert found.returncode == 0, found.stderr
    assert f"process {ranking.pid}, running" in found.stdout
    assert "generation 1: 200 items, 200 rows" in found.stdout
    assert "category: string" in found.stdout
    assert "generated ahead by fg.json" in found.stdout
    # By its JSON as an argument, and for machines.
    found = run("inspect", config, "--verify", "--json")
    assert found.returncode == 0, found.stderr
    mine = [t for t in json.loads(found.stdout) if t["owner"]["pid"] == ranking.pid]
    assert [tree["verified"] for tree in mine] == [True]
    assert "price.values" in mine[0]["companions"][0]["columns"]


def test_get(ranking: LiveServer) -> None:
    config = str(ranking.config)
    found = run("get", "item_0003", config, "--json")
    assert found.returncode == 0, found.stderr
    tree = json.loads(found.stdout)
    assert tree["raw"]["category"] == "häuser"
    [generated] = tree["generated"].values()
    assert generated["vector.values"] == [1.0, -0.6000000238418579, 0.25, 1.0]
    found = run("get", "item_0003", config=config)
    assert '  category: "häuser"' in found.stdout.splitlines()
    found = run("get", "nobody", config=config)
    assert (found.returncode, found.stderr) == (1, "no item 'nobody'\n")


def test_stats(ranking: LiveServer) -> None:
    found = run("stats", str(ranking.config), "--rows", "50")
    assert found.returncode == 0, found.stderr
    head, titles, *lines = found.stdout.splitlines()
    assert "200 rows" in head
    assert "50 rows looked at" in head
    assert titles.split()[:2] == ["column", "kind"]
    assert {line.split()[0] for line in lines} == {
        *("item_id", "category", "price", "vector")
    }
    found = run("stats", str(ranking.config), "--all", "--json")
    assert json.loads(found.stdout)["looked_at"] == 200


def test_nobody_is_disturbed_and_nothing_is_found(ranking: LiveServer) -> None:
    body = build(["item_0001"]).SerializeToString()
    assert post(ranking, body, f"/api/predict/{ranking.name}").status == 200
    found = run("inspect", "no-such-service")
    assert found.returncode == 2
    assert "no item cache" in found.stderr
    found = run("inspect", "no/such/file.json")
    assert found.returncode == 1
    assert run("dance").returncode == 2
