"""``conf/serve.py`` for the server of ``queueing.py``: its model needs operators."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import queueing_operators  # noqa: F401

exec((Path(__file__).parents[1] / "conf" / "serve.py").read_text())
