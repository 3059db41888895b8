"""`python -m zeropull.daemons.holder --socket R/holder.sock`: holds the receiver's events.

It does nothing else, so that nothing ends it: while it lives, no reader of a layer that has not
arrived is let go (`zeropull.delivery.group_holder`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zeropull.delivery.group_holder import serve


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="zeropull.daemons.holder", description=__doc__)
    parser.add_argument("--socket", type=Path, required=True, help="for the receiver")
    serve(parser.parse_args(arguments).socket)


if __name__ == "__main__":
    main()
