#!/usr/bin/env bash
# Speech out of noise, or two speakers apart, on any upstream: masks from a frozen encoder's frames.
#
# --task noise: AN4's speech with sounds of ESC-10, whose test recordings are others than those of
# training. --task speakers: two of AN4's speakers. Training mixes anew in every epoch; the test
# mixtures are made once (tools/make_mixtures.py) of speakers never heard. SI-SDR; PESQ and STOI
# where the libraries pesq and pystoi are installed. Figures compare where the digest of the test audio
# (test_digest in results.json) is the same.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --task speakers --upstream ../../an4/asr/exp/hubert/seed1/it2
#
# --corpus-dir holds an4 and esc10, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, tens of minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
task=noise          # noise or speakers
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=1000          # updates
mixtures=100        # to test on
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
added=()  # what the test mixtures hold beside speech
case $task in
  noise)
    added=(--noise "$data/noise/cuts_test.jsonl.gz")
    kind=(--head.sources 1 --data.mixing.noise_probability 1.0
      --data.mixing.noise_cuts "$data/noise/cuts_train.jsonl.gz") ;;
  speakers) kind=(--head.sources 2 --data.mixing.noise_probability 0.0) ;;
  *) log "--task: found '$task', want noise or speakers"; exit 2 ;;
esac

stage 1 "manifests, test mixtures" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[an4]" --output "$data"
  run "$data/noise/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[esc10]" \
    --output "$data/noise"
  run "$data/$task.mixed" python "$root/tools/make_mixtures.py" --number "$mixtures" \
    --cuts "$data/cuts_test.jsonl.gz" "${added[@]}" --output "$data/$task"
}
for seed in $seeds; do
  dir=$exp/$task/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config conf/finetune.yaml "${start[@]}" \
      "${kind[@]}" \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "separate, $dir" && {
    run "$dir/test" speechssl decode --model "$dir" --cuts "$data/$task/cuts.jsonl.gz" \
      --output "$dir/test"
  }
  stage 4 "score, $dir" && run "$dir/score" speechssl score --decode "$dir/test"
done
stage 4 "table" && python ../local/table.py --exp "$exp/$task"
exit 0
