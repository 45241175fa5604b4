"""``loadtest/fuzz.py``: a short run, single files, and a kernel that is wrong."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# The decoder says 0 whatever debug level the message asks for.
WRONG = """
import sys
from dataclasses import replace
from loadtest import fuzz
from tests.reference import wire_verdicts as verdicts
content = verdicts.torchrec_content
def wrong(request):
    return content(replace(request, debug_level=0))
fuzz.PROTOCOLS = (replace(verdicts.TORCHREC, content=wrong),)
fuzz.RANDOM = {fuzz.PROTOCOLS[0]: fuzz.torchrec_request}
sys.exit(fuzz.main())
"""


def run(folder, *arguments):
    return subprocess.run(
        [sys.executable, *arguments, "--findings", folder, "--sanitized"],
        cwd=ROOT, env={"PYTHONPATH": "."}, capture_output=True, text=True,
    )  # fmt: skip


def test_a_run_without_findings(tmp_path):
    done = run(tmp_path, "loadtest/fuzz.py", "--messages", "3000")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3000 messages" in done.stdout
    assert " 0 findings" in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        "last_torch.bin", "last_torchrec.bin", "last_compressed.bin",
    }  # fmt: skip


def test_a_wrong_kernel_is_found_and_its_message_kept(tmp_path):
    done = run(tmp_path, "-c", WRONG, "--messages", "50000", "--seed", "7")
    assert done.returncode == 1, done.stdout + done.stderr
    kept = [path for path in tmp_path.iterdir() if "last_" not in path.name]
    assert kept
    assert f"FINDING {kept[0].parent}" in done.stdout
    # The kernels themselves are right about it.
    again = run(tmp_path, "loadtest/fuzz.py", str(kept[0]))
    assert again.returncode == 0, again.stdout
    assert "debug_level" in again.stdout
