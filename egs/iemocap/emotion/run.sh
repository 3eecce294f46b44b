#!/usr/bin/env bash
# Emotion on IEMOCAP with any upstream: four classes, or valence, activation and dominance.
#
# categorical: angry, sad, neutral, and happy with excited (5531 utterances); UAR, accuracy (what most papers
# call WA) and macro F1 of each fold with mean and deviation, confusions of all folds together.
# dimensional: the three numbers of all 10 039 utterances; CCC. gender: categorical, and who speaks is a
# second answer of one head. multitask: categorical, learnt together with the transcript (CTC over letters)
# and, less, the gender; WER too. Weights: --overrides "--head.text_weight 0.01". Five folds by session, or ten by speaker; none shares a speaker with its
# training. A fold is validated on the next one, and trained on the others.
#
#   ./run.sh --iemocap /data/IEMOCAP_full_release                                   # log-mel baseline
#   ./run.sh --iemocap /data/IEMOCAP_full_release --upstream /models/wavlm-large --tuned true
#   ./run.sh --iemocap /data/IEMOCAP_full_release --task dimensional --by speaker
#
# Corpus: on request, https://sail.usc.edu/iemocap/iemocap_release.htm. By speaker, the partner of the
# tested speaker is heard in training (or validation), in the same dialogues. Hardware: a GPU, an hour or
# more per fold. Published scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=4        # last stage
iemocap=            # folder that holds Session1 to Session5
task=categorical    # categorical, dimensional, gender or multitask
by=session          # session (5 folds) or speaker (10)
folds=              # folds to run, separated by blanks; empty: all
upstream=logmel     # logmel, random, or a model's folder: own or transformers
tuned=false         # train the encoder too: true or false
name=               # folder of its results; empty: that of the upstream
seeds=1             # seeds, separated by blanks
steps=              # override the number of updates of each fold (for trying out)
overrides=          # further options of finetune, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../../realmini/upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
[[ -z $steps ]] || more+=(--train.steps "$steps")
case $by in
  session) all="1 2 3 4 5" ;;
  speaker) all="1 2 3 4 5 6 7 8 9 10" ;;
  *) log "--by: found '$by', want session or speaker"; exit 2 ;;
esac
folds=${folds:-$all}
slot=()
case $task in
  categorical) four=true ;;
  dimensional) four=false ;;
  gender) four=true; slot=(--slot emotion) ;;
  multitask) four=true ;;
  *) log "--task: found '$task', want categorical, dimensional, gender or multitask"; exit 2 ;;
esac
configs=(--config "conf/$task.yaml")
case $tuned in
  true) configs+=(--config conf/tuned.yaml); name=${name}_tuned ;;
  false) ;;
  *) log "--tuned: found '$tuned', want true or false"; exit 2 ;;
esac
if [[ $tuned == true && $upstream == logmel ]]; then
  log "--tuned: found true with upstream logmel, want an upstream that learns"; exit 2
fi
cuts=$data/four_$four

stage 1 "manifests and folds" && {
  if [[ ! -d $iemocap ]]; then
    log "--iemocap: found '$iemocap', want IEMOCAP_full_release; on request, https://sail.usc.edu/iemocap/iemocap_release.htm"; exit 2
  fi
  run "$cuts/prepare" speechssl prepare iemocap --source "$iemocap" --four "$four" --output "$cuts"
  run "$cuts/divide_$by" python "$root/tools/speaker_folds.py" --cuts "$cuts/cuts_all.jsonl.gz" \
    --folds "$(wc -w <<<"$all")" --speaker "$by" --output "$cuts/by_$by"
}
for seed in $seeds; do
  group=$exp/${task}_by_$by/$name/seed$seed
  tests=()
  for fold in $folds; do
    dir=$group/fold$fold own=$cuts/by_$by/fold$fold
    tests+=("$dir/test")
    stage 2 "train $dir" && {
      run "$dir/train" train speechssl.bin.finetune "${configs[@]}" "${start[@]}" \
        --data.train "[$own/cuts_train.jsonl.gz]" --data.valid "[$own/cuts_valid.jsonl.gz]" \
        --data.seed "$seed" --train.seed "$seed" --output "$dir" "${more[@]}"
    }
    stage 3 "answer, $dir" && {
      run "$dir/test" speechssl decode --model "$dir" --cuts "$own/cuts_test.jsonl.gz" \
        --output "$dir/test"
    }
  done
  stage 4 "score, $group" && {
    run "$group/pool" python local/pool.py --decodings "${tests[@]}" "${slot[@]}" \
      --output "$group/pooled"
    run "$group/score" speechssl score --decode "$group/pooled"
    run "$group/report" speechssl report "$group" --output "$group/report.html"
  }
done
exit 0
