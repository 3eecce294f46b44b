# shellcheck shell=bash
# Sourced by a recipe of voice conversion behind its options and path.sh: what a head, a vocoder, a
# conversion and its scores are made with. Reads the recipe's variables upstream, name, head, seed,
# steps, vocoder, vocoder_steps, verifier, recogniser, overrides, exp, nproc.
# shellcheck disable=SC2154
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
if [[ ! -d $upstream ]]; then
  log "--upstream: found no folder '$upstream', want one with model.json (own) or config.json (transformers)"
  exit 2
fi
for folder in "$verifier" "$recogniser"; do
  [[ -z $folder || -d $folder ]] || {
    log "--verifier, --recogniser: found no folder '$folder', want that of a fine-tuned model"; exit 2
  }
done
name=${name:-$(basename "$upstream")}
mini=$root/egs/mini/vc
synthesiser=$vocoder
[[ $vocoder == hifigan ]] && synthesiser=$exp/vocoder

train_vocoder() { # training cuts, validation cuts: reconstruction, then against critics
  local few=(); [[ -n $vocoder_steps ]] && few=(--train.steps "$vocoder_steps")
  run "$exp/vocoder_start/train" train speechssl.bin.vocoder --config conf/vocoder.yaml \
    --data.train "[$1]" --data.valid "[$2]" --output "$exp/vocoder_start" \
    ${few[@]+"${few[@]}"} ${more[@]+"${more[@]}"}
  run "$exp/vocoder/train" train speechssl.bin.vocoder --config conf/vocoder.yaml \
    --data.train "[$1]" --data.valid "[$2]" --init_from "$exp/vocoder_start" \
    --critic.kind least_squares --output "$exp/vocoder" \
    ${few[@]+"${few[@]}"} ${more[@]+"${more[@]}"}
}

train_head() { # folder, training cuts, validation cuts, further options
  local few=(); [[ -n $steps ]] && few=(--train.steps "$steps")
  run "$1/train" train speechssl.bin.finetune --config "conf/$head.yaml" --init "$upstream" \
    --data.train "[$2]" --data.valid "[$3]" --data.seed "$seed" --train.seed "$seed" \
    --output "$1" "${@:4}" ${few[@]+"${few[@]}"} ${more[@]+"${more[@]}"}
}

natural() { # cuts of sources and targets, cuts of the sources: how they sound to both models
  stage 9 "natural recordings" || return 0
  if [[ -n $verifier ]]; then
    run "$exp/natural" speechssl decode --model "$verifier" --cuts "$1" --output "$exp/natural"
  fi
  if [[ -n $recogniser ]]; then
    run "$exp/source_asr" speechssl decode --model "$recogniser" --cuts "$2" --output "$exp/source_asr"
  fi
}

convert() { # model, folder for the results, cuts, further options
  local made=$2/converted
  run "$made" speechssl convert-voice --model "$1" --vocoder "$synthesiser" --input "$3" \
    --output "$made" "${@:4}"
  if [[ -n $verifier ]]; then
    run "$made/speaker" speechssl decode --model "$verifier" --cuts "$made/cuts.jsonl.gz" \
      --output "$made/speaker"
  fi
  if [[ -n $recogniser ]]; then
    run "$made/asr" speechssl decode --model "$recogniser" --cuts "$made/cuts.jsonl.gz" \
      --output "$made/asr"
  fi
}

score() { # folder, target, fields that agree, cuts of sources, cuts of targets
  local judged=() made=$1/converted
  [[ -n $verifier ]] && judged+=(--embeddings "$made/speaker" --natural "$exp/natural")
  [[ -n $recogniser ]] && judged+=(--transcripts "$made/asr" --source_transcripts "$exp/source_asr")
  run "$1/score" speechssl score-conversion --converted "$made" --target "$2" --match "$3" \
    --sources "$4" --targets "$5" ${judged[@]+"${judged[@]}"}
}

table_and_report() { # folder, names of its rows
  local folders=() one
  for one in $2; do folders+=("$1/seed$seed/$one"); done
  python "$mini/local/table.py" --exp "$1" --upstreams "$2"
  speechssl report "${folders[@]}" --output "$1/report.html"
}
