#!/usr/bin/env bash
# Set up what is missing and run the tests: the fast ones, or with --all the slow ones too.
#
#   tools/test.sh                # a few minutes on two cores
#   tools/test.sh --all true     # everything, before a release
#
# SPEECHSSL_CORPORA=DIR adds the tests on real recordings.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

all=false     # also the tests marked slow
jobs=2        # processes
tests=tests   # folder or file
source "$root/tools/shell/parse_options.sh"

cd "$root"
tools/setup.sh
export OMP_NUM_THREADS=1 SPEECHSSL_TEST_THREADS=1
.venv/bin/ruff check speechssl tests tools
marks=(-m "not slow and not gpu")
[[ $all == true ]] && marks=(-m "not gpu")
.venv/bin/python -m pytest -n "$jobs" "${marks[@]}" "$tests"
