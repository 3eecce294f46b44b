#!/usr/bin/env bash
# Emotion of speakers never heard, on any upstream: cross-validation over speakers.
#
# RAVDESS has 8 emotions by 16 actors (4 folds), nEMO 6 in Polish by 6 speakers (3 folds). Each fold
# is tested on its own speakers, validated on those of the next fold, trained on the others; the
# figure to quote is the UAR over all folds' predictions together.
#
#   ./run.sh --corpus-dir /path/to/corpora                                   # RAVDESS, log-mel
#   ./run.sh --corpus-dir /path/to/corpora --corpus nemo_polish --folds "1 2 3"
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2 \
#     --name it2+logmel --overrides "--fuse [../upstream/logmel.yaml]"       # two upstreams as one
#   ./run.sh --corpus-dir /path/to/corpora --corpus nemo_polish --task multitask   # with transcript and gender
#
# --corpus-dir holds the corpus's folder, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, minutes per fold. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
corpus=ravdess      # ravdess or nemo_polish, or another with speakers, gender and emotions
folds="1 2 3 4"     # folds to run; the largest number says into how many the speakers are divided
task=finetune       # finetune: the emotion; multitask: with the transcript and the gender, by one head
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=600           # updates of each fold
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
divide=             # folds that the speakers are divided into; empty: the largest of --folds
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
case $task in
  finetune) ;;
  multitask) name=${name}_multitask ;;
  *) log "--task: found '$task', want finetune or multitask"; exit 2 ;;
esac
divide=${divide:-$(tr ' ' '\n' <<<"$folds" | sort -n | tail -n 1)}
cuts=$data/$corpus

stage 1 "manifests and folds" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$cuts/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$corpus]" \
    --one_split all --output "$cuts"
  run "$cuts/divide$divide" python "$root/tools/speaker_folds.py" --cuts "$cuts/cuts_all.jsonl.gz" \
    --folds "$divide" --balance gender --output "$cuts/of$divide"
}
for seed in $seeds; do
  for fold in $folds; do
    dir=$exp/$corpus/$name/seed$seed/fold$fold
    own=$cuts/of$divide/fold$fold
    stage 2 "train $dir" && {
      run "$dir/train" train speechssl.bin.finetune --config "conf/$task.yaml" "${start[@]}" \
        --data.train "[$own/cuts_train.jsonl.gz]" --data.valid "[$own/cuts_valid.jsonl.gz]" \
        --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
    }
    stage 3 "classify, $dir" && {
      run "$dir/test" speechssl decode --model "$dir" --cuts "$own/cuts_test.jsonl.gz" \
        --output "$dir/test"
    }
    stage 4 "score, $dir" && run "$dir/score" speechssl score --decode "$dir/test"
  done
done
stage 4 "table" && python ../local/table.py --exp "$exp/$corpus"
exit 0
