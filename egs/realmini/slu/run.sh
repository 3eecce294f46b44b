#!/usr/bin/env bash
# What was ordered, on any upstream: slots of commands to a coffee machine, without a transcript.
#
# Four slots (drink, size, shots, roast), each with its values or none; milk and sugar have too many
# values for 82 recordings. Exact matches, F1 of slot-value pairs. Speakers are not named and may be
# in several splits.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2
#
# --corpus-dir holds coffee_intents, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=400           # updates
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[coffee_intents]" \
    --output "$data"
}
for seed in $seeds; do
  dir=$exp/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config conf/finetune.yaml "${start[@]}" \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "fill slots, $dir" && {
    run "$dir/test" speechssl decode --model "$dir" --cuts "$data/cuts_test.jsonl.gz" \
      --output "$dir/test"
  }
  stage 4 "score, $dir" && run "$dir/score" speechssl score --decode "$dir/test"
done
stage 4 "table" && python ../local/table.py --exp "$exp"
exit 0
