"""``python -m procserver`` is the command ``procserver``."""

from procserver.cli import main

raise SystemExit(main())
