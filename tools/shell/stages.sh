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
