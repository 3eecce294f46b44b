#!/usr/bin/env bash
# Goodness of pronunciation on any upstream: a phone recogniser's posteriors against what was asked.
#
# The recogniser learns the canonical phones of speechocean762's training speakers (native speakers of
# Mandarin, half of them children). The shared subset has no human scores, so a fifth of the test
# speakers' phones is replaced by others, each as often as it is said, and the AUC says how well goodness
# tells those that were said. That is easier than real mispronunciations, which are near to what was
# asked. With human scores in the manifest: tools/goodness.py --scores FIELD gives the correlation with
# them.
#
# Then a head is trained to tell phones that were said from replaced ones, frame by frame, on the
# recogniser's alignment of the training speakers' (speechssl/heads/pronounce.py), and judged the same way;
# its row has _head behind the upstream's name.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2 \
#     --overrides "--head.upsample 2"                                        # at 25 frames per second
#
# --corpus-dir holds speechocean762, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, tens of minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=7        # last stage
corpus_dir=         # folder of corpora
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=1500          # updates of the recogniser
head_steps=600      # updates of the trained head
overrides=          # further options of finetune, separated by blanks
head_overrides=     # those of the trained head
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
read -ra head_more <<<"$head_overrides"

stage 1 "manifests, phones as text" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[speechocean762]" \
    --output "$data/all"
  for split in train valid test; do
    run "$data/phones_$split" python "$root/tools/phone_text.py" \
      --cuts "$data/all/cuts_$split.jsonl.gz" --output "$data/cuts_$split.jsonl.gz"
  done
}
for seed in $seeds; do
  dir=$exp/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config conf/finetune.yaml "${start[@]}" \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "recognise phones, $dir" && {
    run "$dir/phones" speechssl decode --model "$dir" --cuts "$data/cuts_test.jsonl.gz" \
      --output "$dir/phones"
    # A letter is a phone: the character error rate is that of phones.
    run "$dir/phones.score" speechssl score --decode "$dir/phones" --normalisation none
  }
  stage 4 "goodness, $dir" && {
    run "$dir/goodness" python "$root/tools/goodness.py" --model "$dir" \
      --cuts "$data/cuts_test.jsonl.gz" --output "$dir/test"
  }
  head=$exp/${name}_head/seed$seed
  stage 5 "labels of frames, $dir" && for split in train valid; do
    run "$dir/labels_$split" python "$root/tools/goodness.py" --model "$dir" --labels \
      --cuts "$data/cuts_$split.jsonl.gz" --output "$dir/labels"
  done
  stage 6 "train $head" && {
    run "$head/train" train speechssl.bin.finetune --config conf/head.yaml "${start[@]}" \
      --head.phones "$(cat "$dir/labels/phones.json")" \
      --data.labels "{asked: $dir/labels/asked, said: $dir/labels/said}" \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$head_steps" --output "$head" \
      "${head_more[@]}"
  }
  stage 7 "goodness by the head, $head" && {
    run "$head/goodness" python "$root/tools/goodness.py" --model "$dir" --head "$head" \
      --cuts "$data/cuts_test.jsonl.gz" --output "$head/test"
  }
done
if ((stop_stage >= 7)); then last=7; else last=4; fi
stage "$last" "table" && python ../local/table.py --exp "$exp"
exit 0
