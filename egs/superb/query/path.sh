# shellcheck shell=bash
# Sourced by run.sh: the project's environment (made if it is missing) and the stage functions.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
"$root/tools/setup.sh"
export PATH="${SPEECHSSL_VENV:-$root/.venv}/bin:$PATH"
# shellcheck source=/dev/null
source "$root/tools/shell/stages.sh"
