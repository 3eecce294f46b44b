"""`python -m speechssl <verb> ...` is the command `speechssl <verb> ...`."""

import sys

from speechssl.bin.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
