"""Floods are the benchmark's, which is not installed: it runs from the checkout, behind everything that is."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
