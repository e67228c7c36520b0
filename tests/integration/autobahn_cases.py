"""Runs the cases of the Autobahn test suite, in a process of its own, because kosoku puts a stand-in for the package
``autobahn`` before the real one: ``python autobahn_cases.py URL PATTERN…``, with patterns of cases to run, and after a
``!`` of cases to leave out.

Prints one JSON object: ``cases``, the names of all there are, and ``verdicts``, by case those on the messages and on
the close.
"""

import asyncio
import json
import os
import sys

from kosoku import FailureError, run_fuzzingclient
from kosoku.cases import CASES


def verdicts(url: str, patterns: list[str]) -> dict[str, str]:
    """The verdicts, by case."""
    cases = [pattern for pattern in patterns if not pattern.startswith("!")]
    without = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    try:
        results = asyncio.run(run_fuzzingclient(url, cases, without))
    except FailureError as failure:
        results = failure.results
    return {result.case_id: f"{result.behavior.value} {result.behavior_close.value}" for result in results}


if __name__ == "__main__":
    print(json.dumps({"cases": list(CASES), "verdicts": verdicts(sys.argv[1], sys.argv[2:])}), flush=True)
    # Python's own end would stop kosoku's threads in the middle of Rust, which aborts the process for it: on a busy
    # machine every fourth time.
    os._exit(0)
