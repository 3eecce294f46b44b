# shellcheck shell=bash
# Sourced by recipes over many objectives, behind path.sh: what each needs besides its YAML.
#
# The recipe has set train_cuts and valid_cuts; labels, the label store of those whose YAML has
# `kmeans:`; partly, a folder for the transcripts of UniSpeech; and has the function `train`.

stands_on() { # objective: the one whose run it reads; nothing for most
  case $1 in discrete_bert | continuous_bert) echo vq_wav2vec ;; esac
}

# Transcripts of some cuts only, and a tokenizer of them: for UniSpeech.
hide_transcripts() { # cuts whose transcripts to keep: of training, of validation; further options
  local hide=$root/egs/mini/objectives/local/hide_transcripts.py
  run "$partly/train" python "$hide" --cuts "$train_cuts" --keep "$1" \
    --output "$partly/cuts_train.jsonl.gz" --tokenizer "$partly/letters.json" "${@:3}"
  run "$partly/valid" python "$hide" --cuts "$valid_cuts" --keep "$2" \
    --output "$partly/cuts_valid.jsonl.gz"
}

pretrain_objective() { # objective, YAML, run that it stands on, seed, output, further options
  local on=$train_cuts checked=$valid_cuts more=()
  # shellcheck disable=SC2154
  grep -q 'kmeans:' "$2" && more+=(--data.labels.kmeans "$labels")
  [[ -z $(stands_on "$1") ]] || more+=(--objective.units "$3")
  if [[ $1 == unispeech ]]; then
    on=$partly/cuts_train.jsonl.gz checked=$partly/cuts_valid.jsonl.gz
    more+=(--data.tokenizer "$partly/letters.json")
  fi
  run "$5/train" train speechssl.bin.pretrain --config "$2" --data.train "[$on]" \
    --data.valid "[$checked]" ${more[@]+"${more[@]}"} --data.seed "$4" --train.seed "$4" \
    --output "$5" "${@:6}"
}
