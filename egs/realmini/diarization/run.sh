#!/usr/bin/env bash
# Who speaks when, on any upstream: conversations of two made of single recordings.
#
# Conversations are made of AN4's recordings (tools/make_dialogues.py), with pauses and overlaps; those
# of the validation and test split are of speakers never heard. One LSTM on a frozen encoder, trained
# whatever the order of the speakers; diarization error rate without collar, overlap scored.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2
#
# --corpus-dir holds the corpus's folder, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
corpus=an4          # whose speakers talk
number=400          # conversations to train on; an eighth as many to validate and to test
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=600           # updates
median=11           # frames of the median filter
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"

stage 1 "manifests, conversations" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$corpus]" \
    --output "$data"
  for split in train valid test; do
    made=$number; [[ $split == train ]] || made=$(((number + 7) / 8))
    run "$data/$split.made" python "$root/tools/make_dialogues.py" \
      --cuts "$data/cuts_$split.jsonl.gz" --number "$made" --output "$data/$split" \
      --labels "$data/activity"
  done
}
for seed in $seeds; do
  dir=$exp/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config conf/finetune.yaml "${start[@]}" \
      --data.train "[$data/train/cuts.jsonl.gz]" --data.valid "[$data/valid/cuts.jsonl.gz]" \
      --data.labels "{activity: $data/activity}" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "diarize, $dir" && {
    run "$dir/test" speechssl decode --model "$dir" --cuts "$data/test/cuts.jsonl.gz" \
      --median "$median" --output "$dir/test"
  }
  stage 4 "score, $dir" && run "$dir/score" speechssl score --decode "$dir/test"
done
stage 4 "table" && python ../local/table.py --exp "$exp"
exit 0
