#!/usr/bin/env bash
# Sounds, birds and languages on any upstream: one class per recording, or the syllables of a song.
#
#   --task sound      ten classes of ESC-10: rain, dogs, helicopters; clips of one recording stay together
#   --task bird       which of two Bengalese finches sings, on days never heard; a fifth of the training
#                     songs chooses the checkpoint
#   --task song       the syllables of those songs, one letter each, by CTC; songs of 8 s hold some 70, so
#                     25 frames per second are few: --overrides "--head.upsample 2" there
#   --task language   English or Spanish wake words. Contributors are not named: voice and microphone go
#                     with the language, so a high score says little about languages.
#
#   ./run.sh --corpus-dir /path/to/corpora --task sound
#   ./run.sh --corpus-dir /path/to/corpora --task bird --upstream ../../an4/asr/exp/hubert/seed1/it2
#
# --corpus-dir holds esc10, bengalese_finch or wake_words, with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: one CPU core, minutes. Scores: ../RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
corpus_dir=         # folder of corpora
task=sound          # sound, bird, song or language
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=300           # updates
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
conf=finetune
case $task in
  sound) corpus=esc10; field=label ;;
  bird) corpus=bengalese_finch; field=speaker ;;
  song) corpus=bengalese_finch; field=speaker; conf=song ;;
  language) corpus=wake_words; field=language ;;
  *) log "--task: found '$task', want sound, bird, song or language"; exit 2 ;;
esac
cuts=$data/$task

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$cuts/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$corpus]" \
    --output "$cuts/all"
  if [[ $corpus == bengalese_finch ]]; then
    run "$cuts/hold_out" python "$root/tools/hold_out.py" --cuts "$cuts/all/cuts_train.jsonl.gz" \
      --field "$field" --share 0.2 --train "$cuts/cuts_train.jsonl.gz" \
      --valid "$cuts/cuts_valid.jsonl.gz"
  else
    cp "$cuts"/all/cuts_{train,valid}.jsonl.gz "$cuts/"
  fi
  cp "$cuts/all/cuts_test.jsonl.gz" "$cuts/"
  [[ $task != song ]] || for split in train valid test; do
    run "$cuts/text_$split" python "$root/tools/field_text.py" --field label_string \
      --cuts "$cuts/cuts_$split.jsonl.gz" --output "$cuts/cuts_${split}_text.jsonl.gz"
  done
}
own=(--head.field "$field"); text=; normal=basic
if [[ $task == song ]]; then own=(); text=_text; normal=none; fi  # a letter is a syllable
for seed in $seeds; do
  dir=$exp/$task/$name/seed$seed
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config "conf/$conf.yaml" "${start[@]}" \
      "${own[@]}" \
      --data.train "[$cuts/cuts_train$text.jsonl.gz]" \
      --data.valid "[$cuts/cuts_valid$text.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --train.steps "$steps" --output "$dir" "${more[@]}"
  }
  stage 3 "classify, $dir" && {
    run "$dir/test" speechssl decode --model "$dir" --cuts "$cuts/cuts_test$text.jsonl.gz" \
      --output "$dir/test"
  }
  stage 4 "score, $dir" && run "$dir/score" speechssl score --decode "$dir/test" \
    --normalisation "$normal"
done
stage 4 "table" && python ../local/table.py --exp "$exp/$task"
exit 0
