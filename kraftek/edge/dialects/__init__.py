"""Client grammars, sans-IO: one file each, all held by the same contract test (``tests/edge/dialects/contract.py``)."""
