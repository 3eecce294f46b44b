#!/usr/bin/env bash
# Pretrain on all real speech at hand, fine-tune on AN4, score its test split.
#
# Pretraining on every speech corpus below --corpus-dir, by default two HuBERT iterations; then CTC
# recognisers on AN4 train (38 minutes) and on 10 % of it: from the pretrained encoder, from scratch,
# and from the same number of parameters on log-mel frames without a Transformer. Greedy, and beam
# search with the lexicon and a trigram of the training text, its weights chosen on the valid split.
#
#   ./run.sh --corpus-dir /path/to/corpora
#   ./run.sh --corpus-dir /path/to/corpora --objective hubert --iterations 3
#   ./run.sh --corpus-dir /path/to/corpora --objective data2vec \
#     --systems "pretrained frozen random scratch logmel" --probe true
#
# --objective: any of conf/pretrain_NAME_it1.yaml or egs/mini/objectives/conf/NAME.yaml. Those of the
# first kind with a pretrain_NAME_it2.yaml too are iterated: iteration N predicts clusters of layer 3
# of iteration N - 1 and starts from its weights. discrete_bert and continuous_bert read the units of
# vq_wav2vec of the same seed, which is then pretrained first; unispeech reads transcripts too: of the
# tenth of AN4, and of all other corpora. Systems without pretraining are shared by all objectives
# (EXP/baselines).
#
# --probe true: RankMe, PNMI, phones and speakers of each layer on speech that pretraining has not
# heard, and nine keywords by unseen voices. No corpus here has phones with times: those of --phones
# are aligned by `speechssl align`, with CMUdict's pronunciations. The systems `frozen` and `random`
# tell how well letters can be read off an encoder that stays as it is.
#
# --corpus-dir holds one folder per corpus, each with manifest.jsonl and audio/ (see
# speechssl/corpora/jsonl.py). Hardware: two CPU cores. Hours and scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
corpus_dir=         # folder of corpora
objective=hubert    # what to pretrain with; see above
iterations=2        # iterations of those that are iterated
steps_pretrain=     # updates of each pretraining; empty: the YAML's, 3900 for one of egs/mini/objectives
seeds=1             # seeds, separated by blanks
steps=3000          # updates of fine-tuning on all labels
steps_few=1000      # updates of fine-tuning on a tenth of them
systems="pretrained scratch logmel"  # recognisers: these, and frozen and random (not trained) encoders
shares="all few"    # of the labels, to fine-tune with: all, few (a tenth), or both
steps_probe=600     # updates of the keyword probe
probe=false         # true: also probe encoder, random weights and log-mel frames
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
jobs=2              # recognisers or probes to train and decode at a time
overrides=          # further options of each training, such as "--data.num_workers 0"
phones=an4,speechocean762,librispeech_sample,ljspeech_sample  # corpora whose phones are probed
speech=an4,fsdd,speechocean762,ravdess,nemo_polish,speech_commands,coffee_intents,librispeech_sample,ljspeech_sample,vctk_sample,wake_words  # corpora to pretrain on
source ../../../tools/shell/parse_options.sh
source path.sh
source ../../mini/objectives/local/objectives.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra overridden <<<"$overrides"
read -ra all <<<"$systems"

for name in ${all[@]+"${all[@]}"}; do
  case $name in
    pretrained | scratch | logmel | frozen | random) ;;
    *) log "--systems: found $name, want pretrained, frozen, scratch, random or logmel"; exit 2 ;;
  esac
done
[[ $iterations =~ ^[1-9][0-9]*$ ]] || { log "--iterations: found $iterations, want 1 or more"; exit 2; }
[[ $probe == true || $probe == false ]] || { log "--probe: found $probe, want true or false"; exit 2; }
# Only what has a YAML for a second iteration is iterated.
[[ -f conf/pretrain_${objective}_it2.yaml ]] || iterations=1

# The test splits are never seen, not even without labels.
train_cuts=$data/speech/cuts_train_clean.jsonl.gz
valid_cuts=$data/speech/cuts_valid.jsonl.gz
labels=$exp/km_mfcc/labels
partly=$exp/partly
few=(${all[@]+"${all[@]/%/_10}"})
case $shares in
  all) ;;
  few) all=(${few[@]+"${few[@]}"}) ;;
  "all few") all+=(${few[@]+"${few[@]}"}) ;;
  *) log "--shares: found '$shares', want all, few or 'all few'"; exit 2 ;;
esac

# Sets `how`, the YAML and further options of a pretraining.
configure() { # objective, iteration
  how=("conf/pretrain_$1_it$2.yaml")
  (($2 < 3)) || [[ -f ${how[0]} ]] || how=("conf/pretrain_$1_it2.yaml")
  if [[ ! -f ${how[0]} ]]; then
    # The same audio in all as HuBERT's two iterations.
    how=("../../mini/objectives/conf/$1.yaml" --data.batch_seconds 40 --data.max_batch_seconds 40
      --data.max_seconds 15.6 --train.steps "${steps_pretrain:-3900}")
  elif [[ -n $steps_pretrain ]]; then
    how+=(--train.steps "$steps_pretrain")
  fi
  grep -qs '^objective:' "${how[0]}" || {
    log "--objective: found $1, want NAME of conf/pretrain_NAME_it1.yaml or egs/mini/objectives/conf/NAME.yaml"
    exit 2
  }
}
configure "$objective" 1

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/speech/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$speech]" \
    --output "$data/speech"
  run "$data/an4/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[an4]" \
    --output "$data/an4"
  run "$data/an4/subset" python "$root/tools/subset_cuts.py" --cuts "$data/an4/cuts_train.jsonl.gz" \
    --fraction 0.1 --output "$data/an4/cuts_train_10.jsonl.gz"
  run "$data/speech/check" speechssl check --cuts "$data/speech/cuts_train.jsonl.gz" \
    --output "$train_cuts" --report "$data/speech/check.json"
  if [[ $probe == true ]]; then
    run "$data/keyword/prepare" speechssl prepare jsonl --source "$corpus_dir" \
      --only "[speech_commands]" --output "$data/keyword"
    run "$data/phones/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$phones]" \
      --output "$data/phones"
    run "$data/phones/align" speechssl align --lexicon cmudict --output "$data/phones/aligned" --cuts \
      "[$data/phones/cuts_train.jsonl.gz,$data/phones/cuts_valid.jsonl.gz,$data/phones/cuts_test.jsonl.gz]"
  fi
}

stage 4 "k-means on MFCC" && {
  run "$exp/km_mfcc" speechssl cluster fit --cuts "[$train_cuts]" --features mfcc --cmvn true \
    --classes 100 --output "$exp/km_mfcc"
}

stage 5 "labels of iteration 1, and transcripts for UniSpeech" && {
  run "$exp/km_mfcc/apply" speechssl cluster apply --clusters "$exp/km_mfcc" \
    --cuts "[$train_cuts,$valid_cuts]" --output "$labels"
  if [[ $objective == unispeech ]]; then
    # Of AN4 no more than the fine-tuning on a tenth knows.
    hide_transcripts "$data/an4/cuts_train_10.jsonl.gz" "$data/an4/cuts_valid.jsonl.gz" \
      --hide "$data/an4/cuts_train.jsonl.gz"
  fi
}

pretrain() { # objective, iteration, seed, further options
  configure "$1" "$2"
  pretrain_objective "$1" "${how[0]}" "$exp/$(stands_on "$1")/seed$3/it1" "$3" \
    "$exp/$1/seed$3/it$2" "${how[@]:1}" --train.keep_checkpoints 1 \
    ${overridden[@]+"${overridden[@]}"} "${@:4}"
}

place() { # recogniser: its folder
  case $1 in pretrained* | frozen*) echo "$dir/asr_$1" ;; *) echo "$shared/asr_$1" ;; esac
}

finetune() { # a system; _10 behind it: on a tenth of the labels
  local start=(--config conf/finetune.yaml) labelled="" updates=$steps out
  case ${1%_10} in
    pretrained) start+=(--config conf/pretrained.yaml --init "$last") ;;
    frozen) start+=(--config conf/frozen.yaml --init "$last") ;;
    scratch) start+=(--config conf/scratch.yaml) ;;
    random) start+=(--config conf/scratch.yaml --config conf/frozen.yaml) ;;
    logmel) start=(--config conf/finetune_logmel.yaml) ;;
  esac
  if [[ $1 == *_10 ]]; then
    labelled=_10 updates=$steps_few
    [[ ! -f conf/few_${1%_10}.yaml ]] || start+=(--config "conf/few_${1%_10}.yaml")
  fi
  out=$(place "$1")
  run "$out/train" train speechssl.bin.finetune "${start[@]}" \
    --data.train "[$data/an4/cuts_train$labelled.jsonl.gz]" \
    --data.valid "[$data/an4/cuts_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --train.steps "$updates" --train.keep_checkpoints 1 ${overridden[@]+"${overridden[@]}"} \
    --output "$out"
}

decode() { # as finetune
  local out beam=(--method beam --lm "$exp/lm.arpa" --lexicon "$exp/lexicon.txt")
  out=$(place "$1")
  run "$out/greedy" speechssl decode --model "$out" --cuts "$data/an4/cuts_test.jsonl.gz" \
    --method greedy --output "$out/greedy"
  run "$out/sweep" speechssl decode --model "$out" --cuts "$data/an4/cuts_valid.jsonl.gz" \
    "${beam[@]}" --sweep true --output "$out/sweep"
  run "$out/beam" speechssl decode --model "$out" --cuts "$data/an4/cuts_test.jsonl.gz" \
    "${beam[@]}" --tuned "$out/sweep/best.json" --output "$out/beam"
}

probe_layers() { # encoder, random or logmel
  local out=$shared upstream start
  case $1 in
    encoder) out=$dir upstream=(--model "$last") start=(--init "$last") ;;
    random)
      upstream=(--random conf/scratch.yaml --random_seed "$seed")
      start=(--config ../../realmini/upstream/random.yaml) ;;
    logmel) upstream=(--features logmel) start=(--config ../../realmini/upstream/logmel.yaml) ;;
  esac
  run "$out/probe_$1" speechssl probe "${upstream[@]}" --output "$out/probe_$1" \
    --cuts "[$data/phones/aligned/cuts_valid.jsonl.gz,$data/phones/aligned/cuts_test.jsonl.gz]"
  out=$out/keyword_$1
  run "$out/train" train speechssl.bin.finetune --config ../../realmini/keyword/conf/finetune.yaml \
    "${start[@]}" --data.train "[$data/keyword/cuts_train.jsonl.gz]" \
    --data.valid "[$data/keyword/cuts_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --train.steps "$steps_probe" ${overridden[@]+"${overridden[@]}"} --output "$out"
  run "$out/test" speechssl decode --model "$out" --cuts "$data/keyword/cuts_test.jsonl.gz" \
    --output "$out/test"
  run "$out/score" speechssl score --decode "$out/test"
}

for seed in $seeds; do
  dir=$exp/$objective/seed$seed
  last=$dir/it$iterations
  shared=$exp/baselines/seed$seed
  stage 6 "pretrain iteration 1, seed $seed" && {
    [[ -z $(stands_on "$objective") ]] || pretrain "$(stands_on "$objective")" 1 "$seed"
    pretrain "$objective" 1 "$seed"
  }
  for ((it = 2; it <= iterations; it++)); do
    stage 7 "iteration $it, seed $seed" && {
      before=$dir/it$((it - 1)) clusters=$dir/km_it$((it - 1))
      run "$clusters" speechssl cluster fit --cuts "[$train_cuts]" --model "$before" --layer 3 \
        --classes 200 --output "$clusters"
      run "$clusters/apply" speechssl cluster apply --clusters "$clusters" \
        --cuts "[$train_cuts,$valid_cuts]" --output "$clusters/labels"
      labels=$clusters/labels pretrain "$objective" "$it" "$seed" --init_from "$before"
    }
  done
  stage 8 "fine-tune, seed $seed" && side_by_side "$jobs" finetune ${all[@]+"${all[@]}"}
  stage 9 "decode, seed $seed" && {
    run "$exp/lm" speechssl lm --cuts "[$data/an4/cuts_train.jsonl.gz]" --order 3 \
      --output "$exp/lm.arpa" --lexicon "$exp/lexicon.txt"
    side_by_side "$jobs" decode ${all[@]+"${all[@]}"}
  }
  stage 10 "score, seed $seed" && {
    for system in ${all[@]+"${all[@]}"}; do
      out=$(place "$system")
      run "$out/score_greedy" speechssl score --decode "$out/greedy"
      run "$out/score_beam" speechssl score --decode "$out/beam"
    done
    [[ $probe != true ]] || side_by_side "$jobs" probe_layers encoder random logmel
  }
done
stage 10 "table and report" && {
  python local/table.py --exp "$exp"
  for dir in "$exp/$objective"/seed*; do
    folders=("$dir")
    [[ ! -d $exp/baselines/${dir##*/} ]] || folders+=("$exp/baselines/${dir##*/}")
    speechssl report "${folders[@]}" --output "$dir/report.html"
  done
}
exit 0
