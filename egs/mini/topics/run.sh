#!/usr/bin/env bash
# Topics of utterances from their pseudo-labels: what they tell, and what they teach an encoder.
#
# Fits topic models to the units of a corpus, measures what topics tell of speaker, gender, language,
# theme and words, pretrains HuBERTopic beside HuBERT (or MR-HuBERT with topics beside MR-HuBERT) with
# as many updates, and probes both; with --asr true also fine-tunes both for ASR on few transcripts.
# Corpus and clusters are those of another recipe: of ../ssl (synthetic speech), which is run as far as
# it is needed, or of any that has run, such as ../../an4/asr (real speech).
#
#   ./run.sh                                  # all of it, on the synthetic corpus of ../ssl
#   ./run.sh --stop-stage 5                   # topics alone: minutes
#   ./run.sh --topics "10 20 50" --weights "0.1 0.3 1"          # which topics, which weight
#   ./run.sh --topics 20 --weights 0.3 --seeds "1 2 3" --asr true
#   ./run.sh --topics 20 --bases "hubert mr_hubert" --seeds "1 2 3"  # with several resolutions too
#   ./run.sh --iterations 2                   # also topics of the units of learned features
#   ./run.sh --stop-stage 5 --data ../../an4/asr/data/speech --train-cuts cuts_train_clean.jsonl.gz \
#     --clusters ../../an4/asr/exp/km_mfcc --exp exp/real
#
# Hardware: two CPU cores, 4 GB of memory. Figures: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
topics="10 20 50"   # numbers of topics, separated by blanks
weights="0.1"       # weights of the topic's term in pretraining; HuBERT (0) is always there
bases=hubert        # what the topic's term is added to: hubert, mr_hubert or both
seeds=1             # seeds of pretraining
iterations=1        # 2: also topics and pretraining on clusters of the first HuBERT's features
ngrams=1            # lengths of the unit sequences that are words, such as 1,2
group=utterance     # what is one document: utterance, recording or speaker
weighting=counts    # counts or tfidf
max_document_share=1.0  # leave out words of a larger share of the documents
passes=10           # passes over the documents
steps=              # override the number of updates of pretraining
data=../ssl/data    # where the manifests are
train_cuts=cuts_train.jsonl.gz  # those to learn from, in there
valid_cuts=cuts_valid.jsonl.gz  # those to validate on, in there
test_cuts=cuts_test.jsonl.gz    # those to score the probes on, in there
probes="gender language emotion theme"  # fields of the cuts that frozen encoders are probed for
probe_steps=        # override the number of updates of a probe
asr=false           # true: also ASR on the quarter of the transcripts that ../ssl made
asr_steps=          # override the number of updates of fine-tuning for it
clusters=../ssl/exp/km_mfcc     # k-means of iteration 1, with its labels
layer=2             # layer whose clusters are the units of iteration 2
exp=exp             # where results go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
train_cuts=$data/$train_cuts
valid_cuts=$data/$valid_cuts
test_cuts=$data/$test_cuts
both="[$train_cuts,$valid_cuts]"

# The stages of ../ssl that make what is missing; of other places only their own recipe knows.
ssl() { # first stage, last stage, what is missing
  [[ $data == ../ssl/data && $clusters == ../ssl/exp/km_mfcc ]] || {
    log "found no $3; want the output of the recipe that --data and --clusters belong to: run that"
    exit 2
  }
  ../ssl/run.sh --stage "$1" --stop-stage "$2"
}

stage 1 "corpus" && {
  [[ -f $train_cuts && -f $valid_cuts ]] || ssl 1 1 "$train_cuts and $valid_cuts"
}
stage 4 "k-means and labels of iteration 1" && {
  [[ -f $clusters/labels/meta.json ]] || ssl 4 5 "$clusters/labels"
}

learn_topics() { # labels, number of topics, folder
  run "$3" speechssl topics fit --labels "$1" --cuts "[$train_cuts]" --topics "$2" \
    --ngrams "[$ngrams]" --group "$group" --weighting "$weighting" --passes "$passes" \
    --max_document_share "$max_document_share" --output "$3"
  run "$3/apply" speechssl topics apply --topics "$3" --labels "$1" --cuts "$both" \
    --output "$3/labels" --posteriors "$3/posteriors"
  for split in train valid; do
    local cuts=${split}_cuts
    run "$3/show_$split" speechssl topics show --topics "$3/labels" --cuts "[${!cuts}]" \
      --output "$3/show_$split.json"
  done
}
stage 5 "topics of the units of iteration 1" && {
  for number in $topics; do learn_topics "$clusters/labels" "$number" "$exp/topics$number"; done
}

pretrain() { # base, units, topics' labels or nothing, number, weight, folder
  local more=(--objective.topics "$4" --objective.topic_weight "$5")
  [[ -n $3 ]] && more+=(--data.labels.topics "$3")
  [[ -n $steps ]] && more+=(--train.steps "$steps")
  run "$6/train" "$root/tools/shell/launch.sh" --nproc "$nproc" -- speechssl.bin.pretrain \
    --config "conf/${1}opic.yaml" --data.train "[$train_cuts]" --data.valid "[$valid_cuts]" \
    --data.labels.kmeans "$2" --data.seed "$seed" --train.seed "$seed" "${more[@]}" --output "$6"
}

compare() { # units, folder of the topics' folders, iteration
  for base in $bases; do
    pretrain "$base" "$1" "" 2 0 "$dir/${base}_it$3"
    for number in $topics; do
      for weight in $weights; do
        pretrain "$base" "$1" "$2/topics$number/labels" "$number" "$weight" \
          "$dir/${base}opic_it$3_n${number}_w$weight"
      done
    done
  done
}

probe() { # model, field
  local more=()
  [[ -n $probe_steps ]] && more+=(--train.steps "$probe_steps")
  # The frozen encoder runs once for all fields.
  run "$1/probe_$2/train" speechssl finetune --config conf/probe.yaml --init "$1" \
    --head.field "$2" --data.train "[$train_cuts]" --data.valid "[$valid_cuts]" \
    --data.seed "$seed" --train.seed "$seed" --cache "$exp/cache" "${more[@]}" --output "$1/probe_$2"
}

finetune() { # model
  local more=()
  [[ -n $asr_steps ]] && more+=(--train.steps "$asr_steps")
  run "$1/asr/train" "$root/tools/shell/launch.sh" --nproc "$nproc" -- speechssl.bin.finetune \
    --config ../ssl/conf/finetune.yaml --init "$1" --data.train "[$data/cuts_asr_labelled.jsonl.gz]" \
    --data.valid "[$data/cuts_asr_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --train.keep_checkpoints 1 "${more[@]}" --output "$1/asr"
}

transcribe() { # model
  local beam=(--method beam --lm "$exp/lm.arpa" --lexicon "$exp/lexicon.txt")
  # The weights of the language model are chosen on the validation speakers.
  run "$1/asr/sweep" speechssl decode --model "$1/asr" --cuts "$data/cuts_asr_valid.jsonl.gz" \
    "${beam[@]}" --sweep true --output "$1/asr/sweep"
  run "$1/asr/beam" speechssl decode --model "$1/asr" --cuts "$data/cuts_asr_test.jsonl.gz" \
    "${beam[@]}" --tuned "$1/asr/sweep/best.json" --output "$1/asr/beam"
}

for base in $bases; do
  [[ $base == hubert || $base == mr_hubert ]] || {
    log "--bases: found $base, want hubert or mr_hubert"; exit 2
  }
done
if ((iterations > 1)) && [[ $bases != hubert ]]; then
  log "--bases: found '$bases' with --iterations $iterations, want hubert: clusters of its features" \
    "are at 25 per second, too few for the 50 of mr_hubert"
  exit 2
fi
[[ $asr == true || $asr == false ]] || { log "--asr: found $asr, want true or false"; exit 2; }
if [[ $asr == true && ! -f $data/cuts_asr_labelled.jsonl.gz ]] && ((stop_stage >= 8)); then
  [[ $data == ../ssl/data ]] || {
    log "--asr: found no $data/cuts_asr_labelled.jsonl.gz; want the corpus of ../ssl, or --asr false"
    exit 2
  }
fi

for seed in $seeds; do
  dir=$exp/seed$seed
  stage 6 "pretrain iteration 1, seed $seed: HuBERT, and HuBERTopic with as many updates" && {
    compare "$clusters/labels" "$exp" 1
  }
  if ((iterations > 1)) && stage 7 "iteration 2, seed $seed: topics of learned features' units"; then
    run "$dir/km_it1" speechssl cluster fit --cuts "[$train_cuts]" --model "$dir/hubert_it1" \
      --layer "$layer" --classes 100 --output "$dir/km_it1"
    run "$dir/km_it1/apply" speechssl cluster apply --clusters "$dir/km_it1" --cuts "$both" \
      --output "$dir/km_it1/labels"
    for number in $topics; do
      learn_topics "$dir/km_it1/labels" "$number" "$dir/km_it1/topics$number"
    done
    compare "$dir/km_it1/labels" "$dir/km_it1" 2
  fi
  models=()
  for ((iteration = 1; iteration <= iterations; iteration++)); do
    for base in $bases; do
      models+=("$dir/${base}_it$iteration")
      for number in $topics; do
        for weight in $weights; do
          models+=("$dir/${base}opic_it${iteration}_n${number}_w$weight")
        done
      done
    done
  done
  stage 8 "probes of utterances on the frozen encoders, seed $seed: $probes" && {
    for model in "${models[@]}"; do
      for field in $probes; do probe "$model" "$field"; done
      if [[ $asr == true ]]; then finetune "$model"; fi
    done
  }
  stage 9 "predictions of the probes, and probes of frames, seed $seed" && {
    if [[ $asr == true ]]; then
      run "$exp/lm" speechssl lm --cuts "[$data/cuts_asr_train.jsonl.gz]" --order 3 \
        --output "$exp/lm.arpa" --lexicon "$exp/lexicon.txt"
    fi
    for model in "${models[@]}"; do
      for field in $probes; do
        run "$model/probe_$field/test" speechssl decode --model "$model/probe_$field" \
          --cuts "$test_cuts" --method greedy --output "$model/probe_$field/test"
      done
      run "$model/probe" speechssl probe --cuts "[$test_cuts]" --model "$model" \
        --output "$model/probe"
      if [[ $asr == true ]]; then transcribe "$model"; fi
    done
  }
  stage 10 "score the probes, seed $seed" && {
    for model in "${models[@]}"; do
      for field in $probes; do
        run "$model/probe_$field/score" speechssl score --decode "$model/probe_$field/test"
      done
      if [[ $asr == true ]]; then run "$model/asr/score" speechssl score --decode "$model/asr/beam"; fi
    done
  }
done

stage 10 "report and table" && {
  folders=()
  for folder in "$exp"/topics*/ "$exp"/seed*/*hubert*_it*/; do
    [[ ! -d $folder ]] || folders+=("${folder%/}")
  done
  run "$exp/report" speechssl report "${folders[@]}" --output "$exp/report.html"
  python local/table.py --exp "$exp"
}
exit 0
