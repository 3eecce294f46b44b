#!/usr/bin/env bash
# Query by example on any upstream: find spoken words by dynamic time warping; nothing is trained.
#
# Queries are words of Speech Commands by its validation speakers, recordings those of its test
# speakers: other voices. Mean average precision, and QUESST's maximum term-weighted value.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2 --layers "2 3 4"
#
# --corpus-dir holds speech_commands, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=2        # last stage
corpus_dir=         # folder of corpora
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
layers=-1           # layers to try, separated by blanks; -1 is the last
exp=exp             # where results go
data=data           # where manifests go
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
model=${start[1]}  # the folder, or the YAML file of an encoder

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[speech_commands]" \
    --output "$data"
}
for layer in $layers; do
  dir=$exp/$name/layer$layer
  stage 2 "search, $dir" && {
    run "$dir/search" python "$root/tools/query_by_example.py" --model "$model" "--layer=$layer" \
      --queries "$data/cuts_valid.jsonl.gz" --recordings "$data/cuts_test.jsonl.gz" --output "$dir"
  }
done
exit 0
