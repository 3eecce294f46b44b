#!/usr/bin/env bash
# Make the project's own virtual environment. A second run costs seconds.
#
#   tools/setup.sh            # into .venv beside this folder
#   tools/setup.sh --help
#
# Wants Python 3.10 to 3.13 (PYTHON=... chooses one). Installs the CPU build of torch where the
# machine has no NVIDIA driver, and torchaudio only beside a CUDA torch, since its wheel does not
# import beside a CPU torch and then breaks transformers too.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

venv=${SPEECHSSL_VENV:-$root/.venv}  # where the environment goes
python=${PYTHON:-python3}            # interpreter to build it with
extras=all,dev                       # optional dependencies to install
source "$root/tools/shell/parse_options.sh"

log() { printf '%s setup: %s\n' "$(date '+%H:%M:%S')" "$*" >&2; }
die() { log "error: $*"; exit 1; }

command -v "$python" >/dev/null || die "found no $python, want Python 3.10 to 3.13; name one with PYTHON=..."
"$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' ||
  die "found $("$python" --version), want Python 3.10 to 3.13; name one with PYTHON=..."

stamp=$(cat "$root/pyproject.toml" "$root/tools/constraints.txt" "${BASH_SOURCE[0]}" | cksum)
stamp="$stamp $("$python" --version) $extras $root"
if [[ -x $venv/bin/speechssl && $(cat "$venv/.speechssl-setup" 2>/dev/null) == "$stamp" ]]; then
  log "$venv is ready"
  exit 0
fi

# One set-up at a time: two recipes started together would write over each other.
exec 9>"$root/.setup.lock"
if command -v flock >/dev/null; then flock 9; fi

[[ -x $venv/bin/python ]] || "$python" -m venv "$venv" ||
  die "could not make a virtual environment in $venv (on Debian: apt-get install python3-venv)"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet -c "$root/tools/constraints.txt")

log "installing into $venv (some minutes the first time)"
"${pip[@]}" --upgrade pip setuptools
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  "${pip[@]}" torch
  extras="$extras,cuda"
elif ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  # The project's own index of CPU wheels spares gigabytes of CUDA libraries. Where it cannot be
  # reached, whatever index pip is set to serves the same version.
  "${pip[@]}" --retries 0 --timeout 20 --index-url https://download.pytorch.org/whl/cpu torch 2>/dev/null || "${pip[@]}" torch
fi
"${pip[@]}" --editable "${root}[${extras}]"
"$venv/bin/python" - <<'PY'
import torch, speechssl
print(f"speechssl {speechssl.__version__}, torch {torch.__version__}, CUDA {torch.cuda.is_available()}")
PY
printf '%s' "$stamp" >"$venv/.speechssl-setup"
log "done"
