#!/usr/bin/env bash
# SUPERB's tasks on the public corpora as they are published: one table of any upstreams.
#
# Frozen upstreams, SUPERB's heads and updates, the learning rate chosen on validation data. The
# corpora's folders lie below --corpus-dir under the names that tasks/*.yaml state (LibriSpeech,
# SpeechCommands1, VoxCeleb1, fluent_speech_commands_dataset, IEMOCAP_full_release, SNIPS, Libri2Mix_sd,
# Libri2Mix, VoiceBank-DEMAND); one that is not there is named with where to obtain it, and the other
# tasks run. What differs from SUPERB stands at the top of each task's file. Query by example needs no
# training, and is a recipe of its own: query/run.sh.
#
#   ./run.sh --corpus-dir /data --upstreams "logmel /models/hubert-base-ls960 /models/wavlm-base-plus"
#   ./run.sh --corpus-dir /data --upstreams exp/hubert --tasks "keyword speaker_id" --steps 10000
#
# Disk: float16 features of all layers of a Base model take about 3.6 GB per hour of audio, those of
# LibriSpeech-100 hence 400 GB; --cache false computes them in every update instead. Hardware: one GPU;
# a task of 200 000 updates takes hours.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=1        # last stage
corpus_dir=         # folder of corpora
upstreams=logmel    # upstreams, separated by blanks: logmel, random, folders; NAME=... names a row
tasks=              # tasks, separated by blanks; empty: all
seeds=1             # seeds, separated by blanks
steps=0             # updates of each head; 0: those of SUPERB
rates=              # learning rates, separated by blanks; empty: those of each task
overrides=          # further options of finetune, separated by blanks
cache=true          # keep the features of frozen upstreams on disk while their tasks run
cache_dtype=float16  # their number type
pins=pins.yaml      # figures between which SUPERB's score over all tasks lies; empty: no score
more=               # further options of `speechssl suite`, separated by blanks
exp=exp             # where results go
source ../../tools/shell/parse_options.sh
source path.sh

list() { printf '[%s]' "$(tr -s ' ' ',' <<<"$*")"; }
read -ra more_words <<<"$more"

stage 1 "the suite" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  speechssl suite --tasks tasks --corpora "$corpus_dir" --upstreams "$(list "$upstreams")" \
    --only "$(list "$tasks")" --seeds "$(list "$seeds")" --steps "$steps" --rates "$(list "$rates")" \
    ${overrides:+--overrides="$overrides"} --cache "$cache" --cache_dtype "$cache_dtype" \
    ${pins:+--pins "$pins"} --output "$exp" "${more_words[@]}"
  log "the page: $exp/index.html"
}
exit 0
