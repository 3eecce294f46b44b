"""`speechssl synth ...`: generate the synthetic corpus; the same as `prepare synthetic`."""

from __future__ import annotations

import sys


def main(argv: list[str] | None = None) -> int:
    from speechssl.bin.prepare import run

    return run("synthetic", sys.argv[1:] if argv is None else argv, prog="speechssl synth")


if __name__ == "__main__":
    sys.exit(main())
