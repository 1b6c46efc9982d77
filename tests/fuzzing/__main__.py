"""``python -m tests.fuzzing``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as pytest has it

from fuzzing.command import main

sys.exit(main())
