#!/usr/bin/env bash
# Fine-tune a pretrained encoder for ASR on LibriSpeech with a CTC head; decode; score.
#
# The published protocol: 10 min, 1 h or 10 h of Libri-light's limited supervision, 100 h
# (train-clean-100) or all 960 h, with the updates, rates, masks and frozen steps of wav2vec 2.0 Base or
# Large (conf/SIZE_LABELS.yaml over conf/ctc.yaml).
#
#   ./run.sh --librispeech /data/LibriSpeech --model ../ssl/exp/hubert_base_it2 --nproc 8
#   ./run.sh --librispeech /data/LibriSpeech --limited /data/librispeech_finetuning --labels 10min \
#     --size large --model /models/wavlm-large --lm 4-gram.arpa --lexicon librispeech-vocab.txt
#   ./run.sh ... --labels 10h --config conf/hubert_base_10h.yaml   # HuBERT's own row
#
# Corpora: https://www.openslr.org/12 (LibriSpeech), https://www.openslr.org/11 (4-gram.arpa,
# librispeech-vocab.txt), https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz.
# Published hardware: 2 GPUs for Base, 4 for Large, 8 and 24 for 960 h; fewer accumulate, with the same
# gradient. Published scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1               # first stage
stop_stage=10         # last stage
librispeech=          # the corpus folder
limited=              # folder librispeech_finetuning, for 10min, 1h and 10h
model=                # exported encoder to start from; empty: from scratch (with an encoder in --config)
labels=100h           # 10min, 1h, 10h, 100h or 960h
size=base             # base or large: row of the published table
fold=0                # which of the six sets of 10 minutes, 0 to 5
config=               # further configuration, in place of the row's
train_cuts=           # manifests to fine-tune on, separated by commas, instead of the labels' own
valid=dev-other       # part that chooses the checkpoint and the language model's weights
tests=test-clean,test-other  # parts to score
lm=                   # ARPA or KenLM file over words; empty: an n-gram of the training text
order=4               # its length, if it is made here
lexicon=              # words that may be found, one per line; empty: those of the training text
beam=500              # hypotheses kept per frame
beam_threshold=100    # hypotheses this far below the best are dropped
steps=                # override the number of updates (for trying out)
overrides=            # further options of fine-tuning, separated by blanks
name=                 # folder of its results; empty: SIZE_LABELS
exp=exp               # where results go
data=data             # where manifests go
nproc=1               # ranks per node (torchrun)
nodes=1               # nodes
launcher=local        # local or slurm
source ../../../tools/shell/parse_options.sh
source path.sh
[[ $size == base || $size == large ]] || { log "--size: found '$size', want base or large"; exit 2; }
[[ $fold == [0-5] ]] || { log "--fold: found '$fold', want 0 to 5"; exit 2; }
parts=; sets=
case $labels in
  10min) sets=10min-$fold ;;
  1h) sets=10min-0,10min-1,10min-2,10min-3,10min-4,10min-5 ;;
  10h) sets=10min-0,10min-1,10min-2,10min-3,10min-4,10min-5,9h ;;
  100h) parts=train-clean-100 ;;
  960h) parts=train-clean-100,train-clean-360,train-other-500 ;;
  *) log "--labels: found '$labels', want 10min, 1h, 10h, 100h or 960h"; exit 2 ;;
esac
[[ -z $train_cuts ]] || { parts=; sets=; }
config=${config:-conf/${size}_$labels.yaml}
name=${name:-${size}_$labels}
dir=$exp/$name
cuts_of() { local part list=; for part in ${2//,/ }; do list+=,$1/cuts_$part.jsonl.gz; done; echo "${list#,}"; }

stage 1 "manifests" && {
  if [[ ! -d $librispeech ]]; then
    log "--librispeech: found '$librispeech', want the corpus folder; https://www.openslr.org/12"; exit 2
  fi
  run "$data/prepare_${parts:-dev}" speechssl prepare librispeech --source "$librispeech" \
    --parts "[${parts:+$parts,}$valid,$tests]" --output "$data"
  if [[ -n $sets ]]; then
    if [[ ! -d $limited ]]; then
      log "--limited: found '$limited', want the folder librispeech_finetuning for --labels $labels; https://dl.fbaipublicfiles.com/librilight/data/librispeech_finetuning.tgz"; exit 2
    fi
    run "$data/limited/prepare" speechssl prepare librilight_limited --source "$limited" \
      --output "$data/limited"
  fi
}
if [[ -z $train_cuts ]]; then
  if [[ -n $sets ]]; then train_cuts=$(cuts_of "$data/limited" "$sets"); else train_cuts=$(cuts_of "$data" "$parts"); fi
fi
valid_cuts=$data/cuts_$valid.jsonl.gz

stage 8 "fine-tune $dir" && {
  more=()
  [[ -n $model ]] && more+=(--init "$model")
  [[ -n $steps ]] && more+=(--train.steps "$steps")
  # shellcheck disable=SC2206
  more+=($overrides)
  run "$dir/train" "$root/tools/shell/launch.sh" --nproc "$nproc" --nodes "$nodes" \
    --launcher "$launcher" -- speechssl.bin.finetune --config conf/ctc.yaml --config "$config" \
    --data.train "[$train_cuts]" --data.valid "[$valid_cuts]" --output "$dir" "${more[@]}"
}

stage 9 "language model, its weights on $valid, decoding" && {
  if [[ -z $lm || -z $lexicon ]]; then
    run "$dir/lm" speechssl lm --cuts "[$train_cuts]" --order "$order" --output "$dir/lm.arpa" \
      --lexicon "$dir/lexicon.txt"
  fi
  search=(--method beam --lm "${lm:-$dir/lm.arpa}" --lexicon "${lexicon:-$dir/lexicon.txt}"
    --beam "$beam" --beam_threshold "$beam_threshold")
  run "$dir/sweep" speechssl decode --model "$dir" --cuts "$valid_cuts" "${search[@]}" --sweep true \
    --lm_weights "[0,1,2,3,4,5]" --word_scores "[-5,-3,-1,0,1,3,5]" --output "$dir/sweep"
  for part in ${tests//,/ }; do
    run "$dir/greedy_$part" speechssl decode --model "$dir" --method greedy \
      --cuts "$data/cuts_$part.jsonl.gz" --output "$dir/greedy_$part"
    run "$dir/beam_$part" speechssl decode --model "$dir" "${search[@]}" \
      --tuned "$dir/sweep/best.json" --cuts "$data/cuts_$part.jsonl.gz" --output "$dir/beam_$part"
  done
}

stage 10 "score" && {
  for part in ${tests//,/ }; do
    for method in greedy beam; do
      run "$dir/score_${method}_$part" speechssl score --decode "$dir/${method}_$part"
    done
  done
  run "$dir/report" speechssl report "$dir" --output "$dir/report.html"
}
exit 0
