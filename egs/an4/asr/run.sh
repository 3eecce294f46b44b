#!/usr/bin/env bash
# Pretrain on all real speech at hand, fine-tune on AN4, score its test split.
#
# Two HuBERT iterations on every speech corpus below --corpus-dir, then CTC recognisers on AN4 train
# (38 minutes) and on 10 % of it: from the pretrained encoder, from scratch, and from the same
# number of parameters on log-mel frames without a Transformer. Greedy, and beam search with the
# lexicon and a trigram of the training text, its weights chosen on the valid split.
#
#   ./run.sh --corpus-dir /path/to/corpora
#   ./run.sh --corpus-dir /path/to/corpora --objective wavlm
#
# --corpus-dir holds one folder per corpus, each with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: two CPU cores. Hours and scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
corpus_dir=         # folder of corpora
objective=hubert    # hubert or wavlm: conf/pretrain_OBJECTIVE_it1.yaml and _it2.yaml
seeds=1             # seeds, separated by blanks
steps=3000          # updates of fine-tuning on all labels
steps_few=1000      # updates of fine-tuning on a tenth of them
systems="pretrained scratch logmel"  # recognisers to train
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
jobs=2              # recognisers to train and decode at a time
speech=an4,fsdd,speechocean762,ravdess,nemo_polish,speech_commands,coffee_intents,librispeech_sample,ljspeech_sample,vctk_sample,wake_words  # corpora to pretrain on
source ../../../tools/shell/parse_options.sh
source path.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run $data/speech/prepare speechssl prepare jsonl --source "$corpus_dir" --only "[$speech]" \
    --output $data/speech
  run $data/an4/prepare speechssl prepare jsonl --source "$corpus_dir" --only "[an4]" \
    --output $data/an4
  run $data/an4/subset python "$root/tools/subset_cuts.py" --cuts $data/an4/cuts_train.jsonl.gz \
    --fraction 0.1 --output $data/an4/cuts_train_10.jsonl.gz
  run $data/speech/check speechssl check --cuts $data/speech/cuts_train.jsonl.gz \
    --output $data/speech/cuts_train_clean.jsonl.gz --report $data/speech/check.json
}
# The test splits are never seen, not even without labels.
train_cuts=$data/speech/cuts_train_clean.jsonl.gz
valid_cuts=$data/speech/cuts_valid.jsonl.gz

stage 4 "k-means on MFCC" && {
  run $exp/km_mfcc speechssl cluster fit --cuts "[$train_cuts]" --features mfcc --cmvn true \
    --classes 100 --output $exp/km_mfcc
}

stage 5 "labels of iteration 1" && {
  run $exp/km_mfcc/apply speechssl cluster apply --clusters $exp/km_mfcc \
    --cuts "[$train_cuts,$valid_cuts]" --output $exp/km_mfcc/labels
}

pretrain() { # name, config, labels, seed, further options
  run "$1/train" train speechssl.bin.pretrain --config "$2" --data.train "[$train_cuts]" \
    --data.valid "[$valid_cuts]" --data.labels.kmeans "$3" --data.seed "$4" --train.seed "$4" \
    --output "$1" "${@:5}"
}

finetune() { # pretrained, scratch or logmel; _10 behind it: on a tenth of the labels
  local start labelled="" updates=$steps
  case ${1%_10} in
    pretrained) start=(--config conf/finetune.yaml --config conf/pretrained.yaml --init "$dir/it2") ;;
    scratch) start=(--config conf/finetune.yaml --config conf/scratch.yaml) ;;
    logmel) start=(--config conf/finetune_logmel.yaml) ;;
    *) log "--systems: found $1, want pretrained, scratch or logmel"; return 2 ;;
  esac
  if [[ $1 == *_10 ]]; then
    labelled=_10 updates=$steps_few
    [[ $1 == logmel_10 ]] || start+=(--config "conf/few_${1%_10}.yaml")
  fi
  run "$dir/asr_$1/train" train speechssl.bin.finetune "${start[@]}" \
    --data.train "[$data/an4/cuts_train$labelled.jsonl.gz]" \
    --data.valid "[$data/an4/cuts_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --train.steps "$updates" --output "$dir/asr_$1"
}

decode() { # as finetune
  local out=$dir/asr_$1 beam=(--method beam --lm "$exp/lm.arpa" --lexicon "$exp/lexicon.txt")
  run "$out/greedy" speechssl decode --model "$out" --cuts "$data/an4/cuts_test.jsonl.gz" \
    --method greedy --output "$out/greedy"
  run "$out/sweep" speechssl decode --model "$out" --cuts "$data/an4/cuts_valid.jsonl.gz" \
    "${beam[@]}" --sweep true --output "$out/sweep"
  run "$out/beam" speechssl decode --model "$out" --cuts "$data/an4/cuts_test.jsonl.gz" \
    "${beam[@]}" --tuned "$out/sweep/best.json" --output "$out/beam"
}

for seed in $seeds; do
  dir=$exp/$objective/seed$seed
  stage 6 "pretrain iteration 1, seed $seed" && {
    pretrain "$dir/it1" conf/pretrain_${objective}_it1.yaml $exp/km_mfcc/labels "$seed"
  }
  stage 7 "iteration 2, seed $seed" && {
    run "$dir/km_it1" speechssl cluster fit --cuts "[$train_cuts]" --model "$dir/it1" --layer 3 \
      --classes 200 --output "$dir/km_it1"
    run "$dir/km_it1/apply" speechssl cluster apply --clusters "$dir/km_it1" \
      --cuts "[$train_cuts,$valid_cuts]" --output "$dir/km_it1/labels"
    pretrain "$dir/it2" conf/pretrain_${objective}_it2.yaml "$dir/km_it1/labels" "$seed" \
      --init_from "$dir/it1"
  }
  read -ra all <<<"$systems"
  all+=("${all[@]/%/_10}")
  stage 8 "fine-tune, seed $seed" && side_by_side "$jobs" finetune "${all[@]}"
  stage 9 "decode, seed $seed" && {
    run "$exp/lm" speechssl lm --cuts "[$data/an4/cuts_train.jsonl.gz]" --order 3 \
      --output "$exp/lm.arpa" --lexicon "$exp/lexicon.txt"
    side_by_side "$jobs" decode "${all[@]}"
  }
  stage 10 "score, seed $seed" && for system in "${all[@]}"; do
    run "$dir/asr_$system/score_greedy" speechssl score --decode "$dir/asr_$system/greedy"
    run "$dir/asr_$system/score_beam" speechssl score --decode "$dir/asr_$system/beam"
  done
done
stage 10 "table and report" && {
  python local/table.py --exp "$exp"
  for dir in "$exp/$objective"/seed*; do
    run "$dir/report" speechssl report "$dir/it1" "$dir/it2" "$dir"/asr_* --output "$dir/report.html"
  done
}
exit 0
