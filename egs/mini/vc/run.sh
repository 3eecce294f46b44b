#!/usr/bin/env bash
# Voice conversion from features to files one can hear, on synthetic speech, on a CPU.
#
# Speakers of a parallel corpus say the same sentences, so that the target's own recording of what a
# source says is an exact reference. For each upstream, a head learns the target's log-mel from
# frames of the target's speech alone; then it converts what others say. Distortion, F0, speaker (by
# a verifier of our own) and content (by the recogniser of ../ssl) in one table, beside the sources
# as they are and the target's recordings through each vocoder; a report with audio and pictures.
#
#   ./run.sh                                   # all of it; times: RESULTS.md
#   ./run.sh --upstreams "logmel hubert" --stage 8
#   ./run.sh --vocoder griffin_lim             # without training one
#
# Upstreams: logmel (frames of the front end), random (the encoder before training), hubert, wavlm and
# contentvec (pretrained here, on the MFCC clusters of ../ssl; contentvec from hubert's weights),
# hubert_units (HuBERT's frames as one of 200 units). Encoders are at 50 frames per second: at the 25
# of ../ssl words are lost (RESULTS.md).
# What ../ssl has not made yet is made by its recipe. Hardware: two CPU cores, 4 GB of memory.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1         # first stage
stop_stage=10   # last stage
upstreams="logmel random hubert hubert_units wavlm contentvec"  # whose frames are converted
seeds=1         # seeds of pretraining and of the heads, separated by blanks
sentences=260   # sentences that each speaker says
speakers=7      # synthetic speakers, women and men in turn, all splits together
target=0        # whose voice is learnt: name, or number among the speakers of the language
test_sentences=10   # sentences that are converted, of each source
vocoder=spectral    # spectral (trained here), griffin_lim, or a trained vocoder's folder
pretrain_steps=600  # updates of HuBERT, WavLM and ContentVec
vocoder_steps=800   # updates of the vocoder
refine=16       # iterations of Griffin-Lim from a trained vocoder's phases; 0: as they are
verifier_steps=500  # updates of the verifier
head=convnext   # network from frames to log-mel: convnext or taco2ar
steps=1500      # updates of each head
ssl=../ssl/exp  # results of ../ssl: clusters, recogniser
ssl_data=../ssl/data  # its corpus
exp=exp         # where results go
data=data       # where the parallel corpus goes
nproc=1         # ranks for training (torchrun); 1 uses all cores by threads
jobs=2          # upstreams to train and to convert with at a time
overrides=      # further options of each training, such as "--data.num_workers 0"
source ../../../tools/shell/parse_options.sh
source path.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
for name in $upstreams; do
  case $name in
    logmel | random | hubert | hubert_units | wavlm | contentvec) ;;
    *) log "--upstreams: found $name, want some of logmel, random, hubert, hubert_units, wavlm, contentvec"
      exit 2 ;;
  esac
done
[[ $head == convnext || $head == taco2ar ]] || {
  log "--head: found $head, want convnext or taco2ar"; exit 2
}
language=en-us

stage 1 "parallel corpus" && {
  run "$data/synth" speechssl synth --output "$data/synth" --parallel true \
    --utterances $((sentences * speakers)) --speakers "$speakers" --languages "$language" \
    --valid_share 0.01 --test_share 0.01 --emotion_share 0 --snr_db 25,45 --reverb false --seed 3
  run "$data/divide" python local/divide.py --cuts "$data/synth/cuts_train.jsonl.gz" \
    --language "$language" --target "$target" --test "$test_sentences" --output "$data"
}

first=${seeds%% *}
asr=$ssl/seed$first/asr_pretrained
stage 5 "what ../ssl makes: its corpus, clusters and recogniser" && {
  missing=()
  for folder in "$ssl/km_mfcc/labels" "$asr/sweep"; do
    [[ -d $folder ]] || missing+=("$folder")
  done
  if ((${#missing[@]})); then
    [[ $ssl == ../ssl/exp && $ssl_data == ../ssl/data ]] || {
      log "found no ${missing[0]}; want the output of ../ssl/run.sh --exp, stages 1 to 9"
      exit 2
    }
    ../ssl/run.sh --stage 1 --stop-stage 9 --seeds "$first" --jobs "$jobs"
  fi
}

learn_vocoder() {
  run "$exp/vocoder/train" train speechssl.bin.vocoder --config conf/vocoder.yaml \
    --data.train "[$ssl_data/cuts_train.jsonl.gz,$data/cuts_target_train.jsonl.gz]" \
    --data.valid "[$data/cuts_target_valid.jsonl.gz]" --train.steps "$vocoder_steps" \
    --output "$exp/vocoder" ${more[@]+"${more[@]}"}
}

learn_verifier() {
  run "$exp/hold_out" python "$root/tools/hold_out.py" --cuts "$ssl_data/cuts_train.jsonl.gz" \
    --field speaker --train "$exp/cuts_verifier_train.jsonl.gz" --valid "$exp/cuts_verifier_held.jsonl.gz"
  run "$exp/verifier/train" train speechssl.bin.finetune --config conf/verifier.yaml \
    --config ../../realmini/upstream/logmel.yaml \
    --data.train "[$exp/cuts_verifier_train.jsonl.gz]" \
    --data.valid "[$exp/cuts_verifier_held.jsonl.gz]" --train.steps "$verifier_steps" \
    --output "$exp/verifier" ${more[@]+"${more[@]}"}
}

# At 50 frames per second instead of the configurations' 25; masks and context last as long as there.
pretrain() { # hubert, wavlm or contentvec
  local config=../objectives/conf/$1.yaml special=()
  if [[ $1 == contentvec ]]; then
    config=../content/conf/contentvec.yaml
    # From HuBERT's weights: from random ones it has not learnt the words in as few updates (RESULTS.md).
    special=(--data.labels.speakers "$exp/speakers" --objective.speakers "$(cat "$exp/speakers.number")"
      --init_from "$dir/hubert/encoder")
  fi
  run "$dir/$1/pretrain" train speechssl.bin.pretrain --config "$config" \
    --data.train "[$ssl_data/cuts_train.jsonl.gz]" --data.valid "[$ssl_data/cuts_valid.jsonl.gz]" \
    --data.labels.kmeans "$ssl/km_mfcc/labels" --data.seed "$seed" --train.seed "$seed" \
    --objective.mask_span 10 --objective.encoder.mel_hop_samples 320 \
    --objective.encoder.pos_conv_kernel 32 \
    --train.steps "$pretrain_steps" --output "$dir/$1/encoder" \
    ${special[@]+"${special[@]}"} ${more[@]+"${more[@]}"}
}

learn() { # vocoder, verifier, or an upstream to pretrain
  case $1 in
    vocoder | verifier) "learn_$1" ;;
    contentvec) pretrain hubert && pretrain contentvec ;;
    *) pretrain "$1" ;;
  esac
}

synthesiser=$vocoder
[[ $vocoder == spectral ]] && synthesiser=$exp/vocoder
[[ $vocoder == griffin_lim ]] && refine=0
for seed in $seeds; do
  dir=$exp/seed$seed
  stage 6 "pretrain, seed $seed, and vocoder and verifier" && {
    names=() # the longest first
    [[ " $upstreams " == *" contentvec "* ]] && {
      names+=(contentvec)
      run "$exp/speakers" python ../content/local/speakers.py \
        --train "$ssl_data/cuts_train.jsonl.gz" --valid "$ssl_data/cuts_valid.jsonl.gz" \
        --output "$exp/speakers" --number "$exp/speakers.number"
    }
    [[ $vocoder == spectral && $seed == "$first" ]] && names+=(vocoder)
    [[ " $upstreams " == *" wavlm "* ]] && names+=(wavlm)
    # Units are of HuBERT's frames; ContentVec's job pretrains it too.
    [[ " $upstreams " == *" hubert"* && " ${names[*]-} " != *" contentvec "* ]] && names+=(hubert)
    [[ $seed == "$first" ]] && names+=(verifier)
    ((${#names[@]})) && side_by_side "$jobs" learn "${names[@]}"
    if [[ " $upstreams " == *" hubert_units "* ]]; then
      run "$dir/hubert_units/fit" speechssl cluster fit --cuts "[$ssl_data/cuts_train.jsonl.gz]" \
        --model "$dir/hubert/encoder" --layer 3 --classes 200 --output "$dir/hubert_units/clusters"
    fi
  }
done
stage 7 "vocoder and verifier: learnt beside the first seed's pretraining" || true

finetune() { # upstream
  local start=()
  case $1 in
    logmel) start=(--config ../../realmini/upstream/logmel.yaml) ;;
    random)
      start=(--config ../ssl/conf/scratch.yaml --encoder.mel_hop_samples 320
        --encoder.pos_conv_kernel 32) ;;
    hubert_units)
      start=(--init "$dir/hubert/encoder" --head.layer 3
        --head.clusters "$dir/hubert_units/clusters") ;;
    *) start=(--init "$dir/$1/encoder") ;;
  esac
  run "$dir/$1/train" train speechssl.bin.finetune --config "conf/$head.yaml" "${start[@]}" \
    --data.train "[$data/cuts_target_train.jsonl.gz]" \
    --data.valid "[$data/cuts_target_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --train.steps "$steps" --output "$dir/$1" ${more[@]+"${more[@]}"}
}

beam=(--method beam --lm "$ssl/lm.arpa" --lexicon "$ssl/lexicon.txt" --tuned "$asr/sweep/best.json")
listen() { # folder of conversions: whose voice, and what is said
  run "$1/speaker" speechssl decode --model "$exp/verifier" --cuts "$1/cuts.jsonl.gz" \
    --output "$1/speaker"
  run "$1/asr" speechssl decode --model "$asr" --cuts "$1/cuts.jsonl.gz" "${beam[@]}" \
    --output "$1/asr"
}

convert() { # upstream
  local made=$dir/$1/converted
  run "$made" speechssl convert-voice --model "$dir/$1" --vocoder "$synthesiser" --refine "$refine" \
    --input "$data/cuts_source_test.jsonl.gz" --output "$made"
  listen "$made"
}

copy() { # name of a vocoder, for its folder
  local folder=$exp/copy_$1 which=(--vocoder griffin_lim)
  [[ $1 == griffin_lim ]] || which=(--vocoder "$synthesiser" --refine "$refine")
  run "$folder" python local/copy_synthesis.py --cuts "$data/cuts_target_test.jsonl.gz" \
    "${which[@]}" --output "$folder"
  run "$folder/asr" speechssl decode --model "$asr" --cuts "$folder/cuts.jsonl.gz" "${beam[@]}" \
    --output "$folder/asr"
}
copies=(griffin_lim)
[[ $vocoder == griffin_lim ]] || copies+=(vocoder)

for seed in $seeds; do
  dir=$exp/seed$seed
  stage 8 "heads, seed $seed" && {
    read -ra names <<<"$upstreams"
    side_by_side "$jobs" finetune "${names[@]}"
  }
  stage 9 "convert, and listen with verifier and recogniser, seed $seed" && {
    run "$exp/natural" speechssl decode --model "$exp/verifier" --cuts "$data/cuts_natural.jsonl.gz" \
      --output "$exp/natural"
    run "$exp/source_asr" speechssl decode --model "$asr" --cuts "$data/cuts_source_test.jsonl.gz" \
      "${beam[@]}" --output "$exp/source_asr"
    read -ra names <<<"$upstreams"
    side_by_side "$jobs" convert "${names[@]}"
    side_by_side "$jobs" copy "${copies[@]}"
  }
  stage 10 "score, seed $seed" && {
    for name in "${copies[@]}"; do
      run "$exp/copy_$name/score" speechssl score-conversion --converted "$exp/copy_$name" \
        --sources "$data/cuts_target_test.jsonl.gz" --targets "$data/cuts_target_test.jsonl.gz" \
        --transcripts "$exp/copy_$name/asr" --dtw false
    done
    score() { # upstream
      run "$dir/$1/score" speechssl score-conversion --converted "$dir/$1/converted" \
        --sources "$data/cuts_source_test.jsonl.gz" --targets "$data/cuts_target_test.jsonl.gz" \
        --target "$(cat "$data/target.txt")" --match "[sentence]" \
        --embeddings "$dir/$1/converted/speaker" --natural "$exp/natural" \
        --transcripts "$dir/$1/converted/asr" --source_transcripts "$exp/source_asr"
    }
    read -ra names <<<"$upstreams"
    side_by_side "$jobs" score "${names[@]}"
  }
done

stage 10 "table and report" && {
  python local/table.py --exp "$exp" --upstreams "$upstreams"
  for seed in $seeds; do
    pages=()
    for name in $upstreams; do pages+=("$exp/seed$seed/$name"); done
    [[ $vocoder == spectral ]] && pages+=("$exp/vocoder")
    speechssl report "${pages[@]}" "$exp/verifier" --output "$exp/seed$seed/report.html"
  done
}
exit 0
