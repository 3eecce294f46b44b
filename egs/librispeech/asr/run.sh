#!/usr/bin/env bash
# Fine-tune a pretrained encoder for ASR on LibriSpeech with a CTC head; decode; score.
#
#   ./run.sh --librispeech /data/LibriSpeech --model ../ssl/exp/hubert_base_it2 --nproc 8
#
# The default fine-tunes on train-clean-100 with conf/ctc_100h.yaml; conf/ctc_10h.yaml has the
# published ten-hour setting, for a manifest of your own given by --train-cuts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1               # first stage
stop_stage=10         # last stage
librispeech=          # the corpus folder
model=                # exported encoder to start from; empty: from scratch (with an encoder in --config)
config=conf/ctc_100h.yaml  # fine-tuning configuration
train_part=train-clean-100 # part to fine-tune on
train_cuts=           # manifest to fine-tune on, instead of that part
tests=test-clean,test-other  # parts to score
lm=                   # ARPA file; empty: a trigram of the training text
steps=                # override the number of updates (for trying out)
overrides=            # further options of fine-tuning, separated by blanks
exp=exp               # where results go
data=data             # where manifests go
nproc=1               # ranks per node (torchrun)
nodes=1               # nodes
launcher=local        # local or slurm
source ../../../tools/shell/parse_options.sh
source path.sh

stage 1 "manifests" && {
  [[ -d $librispeech ]] || { log "--librispeech: found '$librispeech', want the corpus folder"; exit 2; }
  run $data/prepare speechssl prepare librispeech --source "$librispeech" \
    --parts "[$train_part,dev-clean,$tests]" --output $data
}
train_cuts=${train_cuts:-$data/cuts_$train_part.jsonl.gz}

stage 8 "fine-tune" && {
  more=()
  [[ -n $model ]] && more+=(--init "$model")
  [[ -n $steps ]] && more+=(--train.steps "$steps")
  # shellcheck disable=SC2206
  more+=($overrides)
  run $exp/asr/train "$root/tools/shell/launch.sh" --nproc "$nproc" --nodes "$nodes" \
    --launcher "$launcher" -- speechssl.bin.finetune --config "$config" \
    --data.train "[$train_cuts]" --data.valid "[$data/cuts_dev-clean.jsonl.gz]" \
    --output $exp/asr "${more[@]}"
}

stage 9 "language model, its weights on dev-clean, decoding" && {
  run $exp/lm speechssl lm --cuts "[$train_cuts]" --order 3 --output $exp/lm.arpa \
    --lexicon $exp/lexicon.txt
  run $exp/asr/sweep speechssl decode --model $exp/asr --cuts $data/cuts_dev-clean.jsonl.gz \
    --method beam --lm "${lm:-$exp/lm.arpa}" --lexicon $exp/lexicon.txt --sweep true \
    --output $exp/asr/sweep
  for part in ${tests//,/ }; do
    run "$exp/asr/greedy_$part" speechssl decode --model $exp/asr --method greedy \
      --cuts "$data/cuts_$part.jsonl.gz" --output "$exp/asr/greedy_$part"
    run "$exp/asr/beam_$part" speechssl decode --model $exp/asr --method beam \
      --lm "${lm:-$exp/lm.arpa}" --lexicon $exp/lexicon.txt --tuned $exp/asr/sweep/best.json \
      --cuts "$data/cuts_$part.jsonl.gz" --output "$exp/asr/beam_$part"
  done
}

stage 10 "score" && {
  for part in ${tests//,/ }; do
    for method in greedy beam; do
      run "$exp/asr/score_${method}_$part" speechssl score --decode "$exp/asr/${method}_$part"
    done
  done
  run $exp/asr/report speechssl report $exp/asr --output $exp/asr/report.html
}
exit 0
