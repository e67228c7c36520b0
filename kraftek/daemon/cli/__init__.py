"""The command ``kraftek``, for terminals and cron jobs. Each subcommand is a module, and is named in :data:`COMMANDS`.

A subcommand has ``options(parser)``, and ``run(reactor, given)``: a coroutine that prints what it has to say and
returns the exit status. 0: done. 1: not done, and standard error says why. 2: the command line makes no sense.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any, NoReturn

from twisted.internet import task
from twisted.internet.defer import Deferred

from kraftek import __version__
from kraftek.bus import RedisError
from kraftek.contract.errors import ConfigError, NotPublished
from kraftek.daemon.cli import check, dead, send
from kraftek.service import Away, OldGateway, Refused, Rejected

__all__ = ["main"]

COMMANDS = {"check": check, "dead": dead, "send": send}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its status. Installed as ``kraftek``."""
    parser = ArgumentParser(prog="kraftek", description="Talks to a fleet of Kraftek gateways through their Redis.")
    parser.add_argument("--version", action="version", version=f"kraftek {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        text = module.__doc__ or ""
        summary = text.partition("\n")[0]
        added = subparsers.add_parser(
            name, help=summary, description=text, formatter_class=RawDescriptionHelpFormatter, allow_abbrev=False
        )
        module.options(added)
        added.set_defaults(run=module.run)
    given = parser.parse_args(arguments)
    task.react(lambda reactor: Deferred.fromCoroutine(_run(reactor, given)))
    raise AssertionError("react does not return")


async def _run(reactor: Any, given: Namespace) -> None:
    try:
        status = await given.run(reactor, given)
    except Away as error:
        status = _failed(f"Redis is unavailable: {error}")
    except NotPublished as error:
        status = _failed(f"the connection to Redis was lost: {error}")
    except (Rejected, RedisError) as error:
        status = _failed(f"Redis refuses it: {error}")
    except (ConfigError, OldGateway, Refused, ValueError, OSError) as error:
        status = _failed(str(error))
    raise SystemExit(status)


def _failed(text: str) -> int:
    print(f"kraftek: {text}", file=sys.stderr)
    return 1
