"""Client grammars, sans-IO: one file each, all held by the same contract test (``tests/dialects/contract.py``)."""
