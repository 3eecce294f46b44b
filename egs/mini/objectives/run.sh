#!/usr/bin/env bash
# Every objective with the same encoder, budget of audio and corpus: what each of them learns.
#
# Pretrains the objectives of conf/ for a fixed number of updates of 24 seconds on the synthetic
# corpus of egs/mini/ssl; fine-tunes each for ASR on a quarter of the English transcripts, beside
# the same encoder with random weights and one on log-mel frames; probes every layer on speakers
# that training has not heard; and writes one table, mean and deviation over seeds.
#
#   ./run.sh --seeds "1 2 3"                              # all: by estimate 7 hours on two cores
#   ./run.sh --objectives "hubert data2vec" --steps 300   # some, for less
#
# discrete_bert and continuous_bert read the units of vq_wav2vec of the same seed, which is then
# pretrained first; unispeech reads the transcripts that fine-tuning reads; what the table says of
# their hours includes what they stand on. An objective that fails or collapses is named at the end,
# and the others go on. Hardware: two CPU cores, 4 GB of memory, 3 GB of disk per seed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1         # first stage
stop_stage=10   # last stage
objectives="hubert wavlm ils hubert_20ms mr_hubert unispeech_sat unispeech wav2vec2 wav2vec_aug w2v_bert w2v_bert_conformer bestrq bestrq_conformer data2vec data2vec2 data2vec_aqc dinosr tera vq_wav2vec discrete_bert continuous_bert"  # objectives: names of conf/NAME.yaml
baselines="random random_w2v_bert_conformer random_vq_wav2vec random_discrete_bert random_continuous_bert logmel"  # rows beside them: random weights, of hubert.yaml's encoder and of NAME.yaml's; log-mel frames
seeds=1         # seeds of pretraining and fine-tuning, separated by blanks
steps=500       # updates of pretraining, for each objective
finetune_steps=1000  # updates of fine-tuning; fewer show who starts fast rather than who knows more
hours=1.5       # hours of synthetic speech, all splits together
languages=en-us,es  # languages of the corpus
speakers=240    # synthetic speakers, all splits together
asr_language=en-us  # language of the recogniser
labelled=0.25   # share of that language's training speech that is transcribed
probe_hours=0.5    # hours of further speech for the probes
probe_speakers=60  # its speakers, all of them others
exp=exp         # where results go
data=../ssl/data   # where the corpus goes, or lies already
nproc=1         # ranks for training (torchrun); 1 uses all cores by threads
overrides=      # further options of each training, such as "--data.num_workers 0"
source ../../../tools/shell/parse_options.sh
source path.sh
source local/objectives.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra overridden <<<"$overrides"

is_objective() { grep -qs '^objective:' "conf/$1.yaml"; }
for name in $objectives; do
  is_objective "$name" || {
    log "--objectives: found $name, want names of conf/NAME.yaml that have an objective"; exit 2
  }
done
for name in $baselines; do
  [[ $name == random || $name == logmel ]] || { [[ $name == random_* ]] && is_objective "${name#random_}"; } || {
    log "--baselines: found $name, want random, logmel or random_NAME of conf/NAME.yaml"; exit 2
  }
done

# Those that stand on another's outputs come second.
first=() second=()
for name in $objectives $baselines; do
  case $name in random | logmel) continue ;; esac
  if [[ -n $(stands_on "${name#random_}") ]]; then second+=("$name"); else first+=("$name"); fi
done
if ((${#second[@]})) && [[ " ${first[*]-} " != *" vq_wav2vec "* ]]; then first+=(vq_wav2vec); fi

train_cuts=$data/cuts_train.jsonl.gz
valid_cuts=$data/cuts_valid.jsonl.gz
labels=$exp/km_mfcc/labels
partly=$exp/partly

stage 1 "corpus and manifests: those of egs/mini/ssl, and speech for the probes" && {
  there=$(python -c 'import os, sys; print(os.path.relpath(sys.argv[1], sys.argv[2]))' "$data" ../ssl)
  "$root/egs/mini/ssl/run.sh" --stage 1 --stop-stage 1 --data "$there" --hours "$hours" --languages "$languages" \
    --speakers "$speakers" --asr-language "$asr_language" --labelled "$labelled"
  run "$data/probe" speechssl synth --output "$data/probe" --hours "$probe_hours" \
    --languages "$languages" --speakers "$probe_speakers" --snr_db 20,40 --reverb false --seed 2
}

stage 2 "shards: not needed for a corpus that fits in the page cache" || true
stage 3 "features: MFCC and hidden states are computed as they are needed, never stored" || true

stage 4 "k-means on MFCC" && {
  run "$exp/km_mfcc" speechssl cluster fit --cuts "[$train_cuts]" \
    --features mfcc --cmvn true --classes 100 --output "$exp/km_mfcc"
}

stage 5 "labels, and transcripts for UniSpeech" && {
  run "$exp/km_mfcc/apply" speechssl cluster apply --clusters "$exp/km_mfcc" \
    --cuts "[$train_cuts,$valid_cuts]" --output "$labels"
  hide_transcripts "$data/cuts_asr_labelled.jsonl.gz" "$data/cuts_asr_valid.jsonl.gz"
}

failed=()
trap 'exit 130' INT
try() { # objective, seed, function: call it with both, unless something of them has failed
  [[ " ${failed[*]-} " != *" $2/$1 "* ]] || return 0
  "$3" "$1" "$2" || failed+=("$2/$1")
}

pretrain() { # objective, seed; random_ before it: only its untrained model
  local dir=$exp/seed$2 name=${1#random_} updates=$steps on
  [[ $name == "$1" ]] || updates=0
  on=$(stands_on "$name")
  if [[ -n $on && " ${failed[*]-} " == *" $2/$on "* ]]; then return 1; fi
  # A checkpoint is four times the model; the run is not continued once it is done.
  pretrain_objective "$name" "conf/$name.yaml" "$dir/$on" "$2" "$dir/$1" --train.steps "$updates" \
    --train.keep_checkpoints 1 ${overridden[@]+"${overridden[@]}"}
}

finetune() { # objective or baseline, seed
  local dir=$exp/seed$2 start=(--config ../ssl/conf/finetune.yaml)
  case $1 in
    # With the dropout that suits it; random_NAME is fine-tuned just as NAME.
    random) start+=(--config ../ssl/conf/scratch.yaml) ;;
    logmel) start=(--config conf/finetune_logmel.yaml) ;;
    *) start+=(--init "$dir/$1") ;;
  esac
  run "$dir/asr_$1/train" train speechssl.bin.finetune "${start[@]}" \
    --data.train "[$data/cuts_asr_labelled.jsonl.gz]" \
    --data.valid "[$data/cuts_asr_valid.jsonl.gz]" --data.seed "$2" --train.seed "$2" \
    --train.steps "$finetune_steps" --train.keep_checkpoints 1 --output "$dir/asr_$1" \
    ${overridden[@]+"${overridden[@]}"}
}

decode() { # as finetune
  local asr=$exp/seed$2/asr_$1 beam=(--method beam --lm "$exp/lm.arpa" --lexicon "$exp/lexicon.txt")
  # The weights of the language model are chosen on the validation speakers.
  run "$asr/greedy" speechssl decode --model "$asr" --cuts "$data/cuts_asr_test.jsonl.gz" \
    --method greedy --output "$asr/greedy" &&
    run "$asr/sweep" speechssl decode --model "$asr" --cuts "$data/cuts_asr_valid.jsonl.gz" \
      "${beam[@]}" --sweep true --output "$asr/sweep" &&
    run "$asr/beam" speechssl decode --model "$asr" --cuts "$data/cuts_asr_test.jsonl.gz" \
      "${beam[@]}" --tuned "$asr/sweep/best.json" --output "$asr/beam"
}

score() { # as finetune
  local dir=$exp/seed$2 upstream
  case $1 in
    # The same frames and parts for all seeds but that of the random weights.
    random) upstream=(--random conf/hubert.yaml --random_seed "$2") ;;
    logmel) upstream=(--features logmel) ;;
    *) upstream=(--model "$dir/$1") ;;
  esac
  run "$dir/asr_$1/score_greedy" speechssl score --decode "$dir/asr_$1/greedy" &&
    run "$dir/asr_$1/score_beam" speechssl score --decode "$dir/asr_$1/beam" &&
    run "$dir/probe_$1" speechssl probe "${upstream[@]}" --output "$dir/probe_$1" \
      --cuts "[$data/probe/cuts_train.jsonl.gz,$data/probe/cuts_valid.jsonl.gz,$data/probe/cuts_test.jsonl.gz]"
}

for seed in $seeds; do
  stage 6 "pretrain, seed $seed" && {
    for name in ${first[@]+"${first[@]}"}; do try "$name" "$seed" pretrain; done
  }
  stage 7 "pretrain on the units of vq-wav2vec, seed $seed" && {
    for name in ${second[@]+"${second[@]}"}; do try "$name" "$seed" pretrain; done
  }
  stage 9 "language model" && run "$exp/lm" speechssl lm --cuts "[$data/cuts_asr_train.jsonl.gz]" \
    --order 3 --output "$exp/lm.arpa" --lexicon "$exp/lexicon.txt"
  for name in $objectives $baselines; do
    stage 8 "fine-tune for ASR: $name, seed $seed" && try "$name" "$seed" finetune
    stage 9 "decode: $name, seed $seed" && try "$name" "$seed" decode
    stage 10 "score and probe: $name, seed $seed" && try "$name" "$seed" score
  done
  stage 10 "table, up to seed $seed" &&
    python local/table.py --exp "$exp" --objectives "$objectives $baselines"
done

stage 10 "report" && for seed in $seeds; do
  speechssl report "$exp/seed$seed" --output "$exp/seed$seed/report.html"
done
if ((${#failed[@]})); then
  log "FAILED, seed/objective: ${failed[*]}; running the recipe again tries them again"
  exit 1
fi
exit 0
