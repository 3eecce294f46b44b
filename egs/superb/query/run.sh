#!/usr/bin/env bash
# SUPERB's query by example on any upstream: English queries of QUESST 2014, nothing is trained.
#
# Every layer is searched with the development queries; the best of them is searched with the evaluation
# queries. Scores are those of the corpus's own program, maximum term-weighted value.
#
#   ./run.sh --quesst /data/quesst14Database --upstream /models/hubert-base-ls960 --layers "0 1 2 3 4 5 6 7 8 9 10 11 12"
#
# Corpus: https://speech.fit.vutbr.cz/files/quesst14Database.tgz, with scoring/score-TWV-Cnxe.sh.
# Hardware: one GPU or CPU core; minutes per layer for the features, then the warping on one core.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=3        # last stage
quesst=             # folder quesst14Database
upstream=logmel     # logmel, random, or a model's folder: own or transformers
layers=-1           # layers to try on the development queries; -1 is the last
name=               # folder of its results; empty: that of the upstream
exp=exp             # where results go
data=data           # where manifests go
source ../../../tools/shell/parse_options.sh
source path.sh
source ../../realmini/upstream/start.sh
model=${start[1]}  # the folder, or the YAML file of an encoder

stage 1 "manifests" && {
  if [[ ! -d $quesst ]]; then
    log "--quesst: found '$quesst', want quesst14Database; https://speech.fit.vutbr.cz/files/quesst14Database.tgz"; exit 2
  fi
  run "$data/prepare" speechssl prepare quesst14 --source "$quesst" --output "$data"
}
search() { # layer, dev or eval
  local dir
  mkdir -p "$exp/$name"
  dir=$(cd "$exp/$name" && pwd)/layer$1_$2
  run "$dir/search" python "$root/tools/query_by_example.py" --model "$model" "--layer=$1" \
    --queries "$data/cuts_$2.jsonl.gz" --recordings "$data/cuts_recordings.jsonl.gz" \
    --stdlist true --output "$dir"
  run "$dir/score" bash -c 'cd "$0" && ./score-TWV-Cnxe.sh "$1" "$2" -10' "$quesst/scoring" "$dir" \
    "groundtruth_quesst14_$2"
}
best_layer() { # highest maxTWV in the outputs of the development queries
  local layer
  for layer in $layers; do
    # Lines such as `actTWV: 0.01 maxTWV: 0.07 Threshold: 5.1`, in the scorer's file or its output.
    cat "$exp/$name/layer${layer}_dev/score.out" "$exp/$name/layer${layer}_dev/score.log" 2>/dev/null |
      sed -n "s/.*maxTWV:[[:space:]]*\([-0-9.e]*\).*/\1 $layer/p" | head -n 1
  done | sort -g | tail -n 1
}
stage 2 "development queries, each layer" && for layer in $layers; do search "$layer" dev; done
stage 3 "evaluation queries, best layer" && {
  read -r value layer <<<"$(best_layer)" || true
  if [[ -z ${layer:-} ]]; then
    log "stage 2: found no maxTWV in $exp/$name/layer*_dev/score.out, want that of the corpus's scorer"; exit 1
  fi
  log "best layer on the development queries: $layer (maxTWV $value)"
  search "$layer" eval
}
exit 0
