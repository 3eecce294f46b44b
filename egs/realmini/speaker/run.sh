#!/usr/bin/env bash
# Speaker verification on any upstream: ECAPA-TDNN on a frozen encoder, trials of unseen speakers.
#
# Trained on the training speakers of several small corpora, of whom a tenth of the recordings is
# held out to choose the checkpoint. Trials are pairs of AN4's and speechocean762's validation and
# test speakers, both sides from one corpus and of one gender; cosine and AS-norm, EER and minDCF.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # log-mel baseline
#   ./run.sh --corpus-dir /path/to/corpora --upstream random
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2
#
# --corpus-dir holds one folder per corpus, each with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: CPU cores; with log-mel frames, a hundred per
# second, the network itself costs more than the encoders here. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
train_corpora=an4,speechocean762,ravdess,nemo_polish,speech_commands  # whose training speakers teach
trial_corpora=an4,speechocean762  # whose other speakers are verified
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=1000          # updates
backend=cosine      # cosine or plda, learnt of the training recordings; AS-norm follows either
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"

stage 1 "manifests, held-out recordings, trials" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/known/prepare" speechssl prepare jsonl --source "$corpus_dir" \
    --only "[$train_corpora]" --output "$data/known"
  run "$data/unseen/prepare" speechssl prepare jsonl --source "$corpus_dir" \
    --only "[$trial_corpora]" --output "$data/unseen"
  run "$data/hold_out" python "$root/tools/hold_out.py" --cuts "$data/known/cuts_train.jsonl.gz" \
    --field speaker --train "$data/cuts_train.jsonl.gz" --valid "$data/cuts_held.jsonl.gz"
  run "$data/trials" python "$root/tools/make_trials.py" \
    --cuts "$data/unseen/cuts_valid.jsonl.gz" "$data/unseen/cuts_test.jsonl.gz" \
    --same corpus gender --different text --output "$data/trials.txt"
}
unseen="[$data/unseen/cuts_valid.jsonl.gz,$data/unseen/cuts_test.jsonl.gz]"
for seed in $seeds; do
  dir=$exp/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config conf/finetune.yaml "${start[@]}" \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_held.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "embed, $dir" && {
    run "$dir/test" speechssl decode --model "$dir" --cuts "$unseen" --output "$dir/test"
    run "$dir/cohort" speechssl decode --model "$dir" --cuts "$data/cuts_train.jsonl.gz" \
      --output "$dir/cohort"
  }
  stage 4 "score, $dir" && {
    learnt=(); [[ $backend == plda ]] && learnt=(--plda "$dir/cohort")
    run "$dir/score" speechssl score --decode "$dir/test" --trials "$data/trials.txt" \
      --cohort "$dir/cohort" --top 100 "${learnt[@]}"
  }
done
stage 4 "table" && python ../local/table.py --exp "$exp"
exit 0
