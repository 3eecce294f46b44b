# shellcheck shell=bash
# Sourced by a recipe after its options: numbered stages that can be killed and run again.
#
#   stage 4 "k-means on MFCC" && {
#     run exp/km1 speechssl cluster fit ... --output exp/km1
#   }
#
# `stage N text` is true when N lies within --stage .. --stop-stage. `run MARK command...` does the
# command unless MARK/.done (or MARK.done) says that the same command has ended well before; its
# output goes to the terminal and to MARK.log. Each step prints its time.
#
# `side_by_side JOBS FUNCTION WORD...` calls FUNCTION with each WORD, JOBS of them at a time, each
# with its share of the cores and its word before each line of its output; put the longest first.
# Small models use two cores better in two runs than in two threads.

_recipe_start=$SECONDS

log() { printf '%s (+%ss) %s\n' "$(date '+%H:%M:%S')" "$((SECONDS - _recipe_start))" "$*" >&2; }

stage() {
  ((stage <= $1 && $1 <= stop_stage)) || return 1
  log "stage $1: $2"
}

run() {
  local mark=$1 begin=$SECONDS; shift
  local done_file="$mark.done" log_file="$mark.log"
  if [[ -f $done_file && $(cat "$done_file") == "$*" ]]; then
    log "  already done: $mark"
    return 0
  fi
  rm -f "$done_file"
  mkdir -p "$(dirname "$mark")"
  log "  $*"
  if ! "$@" 2>&1 | tee "$log_file"; then
    log "  FAILED; its output is in $log_file; running the recipe again continues here"
    return 1
  fi
  printf '%s' "$*" >"$done_file"
  log "  done in $((SECONDS - begin)) s: $mark"
}

side_by_side() {
  local jobs=$1 function=$2 cores word running=0 status=0; shift 2
  if ((jobs == 1)); then
    for word in "$@"; do "$function" "$word"; done
    return 0
  fi
  cores=$(nproc)
  # Bash starts commands in the background deaf to an interrupt from the keyboard.
  trap 'trap - INT; kill -TERM 0' INT
  for word in "$@"; do
    if ((running == jobs)); then
      wait -n || status=1
      running=$((running - 1))
      ((status)) && break
    fi
    {
      export OMP_NUM_THREADS=$((cores > jobs ? cores / jobs : 1))
      "$function" "$word" 2>&1 | sed -u "s/^/[$word] /"
    } &
    running=$((running + 1))
  done
  for ((; running; running--)); do wait -n || status=1; done
  trap - INT
  return "$status"
}
