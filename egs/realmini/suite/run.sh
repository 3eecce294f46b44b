#!/usr/bin/env bash
# Every upstream on every task of this folder's tasks/: one table, suite.json and a page.
#
# The upstreams are frozen; each runs once per utterance, and small heads read its features. Of each
# head several learning rates are tried, and the best on the validation split is tested. A task is one
# YAML file; adding one adds a column. Killed, the same command goes on; a corpus that is not there is
# named, and the other tasks run.
#
#   ./run.sh --corpus-dir /path/to/corpora --upstreams "logmel random ../../an4/asr/exp/hubert/seed1/it2"
#   ./run.sh --corpus-dir /path/to/corpora --tasks "keyword sounds" --seeds "1 2 3"
#   ./run.sh --corpus-dir /path/to/corpora --upstreams "base=/path/to/a/transformers/folder"
#
# --corpus-dir holds one folder per corpus, each with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core; a cell of a small upstream takes about half a
# minute of it. Scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=1        # last stage
corpus_dir=         # folder of corpora
upstreams="logmel random"  # upstreams, separated by blanks; NAME=... names a row
tasks=              # tasks, separated by blanks; empty: all
seeds=1             # seeds, separated by blanks
steps=0             # updates of each head; 0: those of each task
rates=              # learning rates, separated by blanks; empty: those of each task
overrides=          # further options of finetune, separated by blanks
more=               # further options of `speechssl suite`, separated by blanks
exp=exp             # where results go
source ../../../tools/shell/parse_options.sh
source path.sh

list() { printf '[%s]' "$(tr -s ' ' ',' <<<"$*")"; }
chosen=()
for upstream in $upstreams; do
  case $upstream in
    random) chosen+=(random=../upstream/random.yaml) ;;
    *) chosen+=("$upstream") ;;
  esac
done
read -ra more_words <<<"$more"

stage 1 "the suite" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  speechssl suite --tasks tasks --corpora "$corpus_dir" --upstreams "$(list "${chosen[@]}")" \
    --only "$(list "$tasks")" --seeds "$(list "$seeds")" --steps "$steps" --rates "$(list "$rates")" \
    ${overrides:+--overrides="$overrides"} --output "$exp" "${more_words[@]}"
  log "the page: $exp/index.html"
}
exit 0
