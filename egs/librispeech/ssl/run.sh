#!/usr/bin/env bash
# HuBERT, WavLM and MR-HuBERT on LibriSpeech as published, all iterations from MFCC clusters on; and
# HuBERTopic, alone and with MR-HuBERT, on topics of the same units.
#
#   ./run.sh --librispeech /data/LibriSpeech --nproc 8                        # HuBERT Base
#   ./run.sh --librispeech /data/LibriSpeech --nproc 8 --recipe hubert_large  # on its labels
#   ./run.sh --librispeech /data/LibriSpeech --nproc 8 --recipe wavlm_base
#
# Hardware of the papers: 32 GPUs for Base (about a day per 100k updates on 8), 128 for Large. The
# effective batch is a number of seconds in conf/*.yaml; fewer GPUs accumulate and take longer, with
# the same gradient. Expected scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1               # first stage
stop_stage=10         # last stage
librispeech=          # the corpus folder, holding train-clean-100 and so on
recipe=hubert_base    # hubert_base, hubert_large, hubert_xlarge, wavlm_base, wavlm_base_plus, wavlm_large, mr_hubert_base, mr_hubert_large, hubertopic_base, hubertopic_large, mr_hubertopic_base or mr_hubertopic_large
train_parts=train-clean-100,train-clean-360,train-other-500  # parts to pretrain on
valid_parts=dev-clean # parts to validate on
iterations=2          # HuBERT Base iterations before the recipe's own: 1 or 2
steps=                # override the number of updates of every pretraining (for trying out)
overrides=            # further options of every pretraining, separated by blanks
sample_frames=5000000 # frames to fit k-means on
topics=50             # topics of HuBERTopic
topic_passes=2        # passes over the utterances to learn them
exp=exp               # where results go
data=data             # where manifests go
nproc=1               # ranks per node (torchrun)
nodes=1               # nodes
launcher=local        # local or slurm
source ../../../tools/shell/parse_options.sh
source path.sh
train() {
  "$root/tools/shell/launch.sh" --nproc "$nproc" --nodes "$nodes" --launcher "$launcher" -- "$@"
}

stage 1 "manifests" && {
  [[ -d $librispeech ]] || { log "--librispeech: found '$librispeech', want the corpus folder"; exit 2; }
  run $data/prepare speechssl prepare librispeech --source "$librispeech" \
    --parts "[$train_parts,$valid_parts]" --output $data
}
cuts_of() { local part list=; for part in ${1//,/ }; do list+=,$data/cuts_$part.jsonl.gz; done; echo "[${list#,}]"; }
train_cuts=$(cuts_of "$train_parts")
valid_cuts=$(cuts_of "$valid_parts")
both="[${train_cuts:1:-1},${valid_cuts:1:-1}]"

stage 2 "shards" && {
  log "  optional, for network storage: speechssl shard --cuts FILE --output DIR, then use DIR as cuts"
}

stage 4 "k-means, K=100, on MFCC" && {
  run $exp/km_mfcc speechssl cluster fit --cuts "$train_cuts" --features mfcc --classes 100 \
    --sample-frames "$sample_frames" --output $exp/km_mfcc
}

stage 5 "labels of iteration 1" && {
  run $exp/km_mfcc/apply speechssl cluster apply --clusters $exp/km_mfcc --cuts "$both" \
    --output $exp/km_mfcc/labels
}

pretrain() { # name, config, labels, further options
  local more=()
  [[ -n $steps ]] && more+=(--train.steps "$steps")
  # shellcheck disable=SC2206
  more+=($overrides "${@:4}")
  run "$1/train" train speechssl.bin.pretrain --config "$2" --data.train "$train_cuts" \
    --data.valid "$valid_cuts" --data.labels.kmeans "$3" --output "$1" "${more[@]}"
}

cluster() { # model, layer, classes, output
  run "$4" speechssl cluster fit --cuts "$train_cuts" --model "$1" --layer "$2" --classes "$3" \
    --sample-frames "$sample_frames" --output "$4"
  run "$4/apply" speechssl cluster apply --clusters "$4" --cuts "$both" --output "$4/labels"
}

learn_topics() { # clusters; the options of pretraining on their topics are left in topic_options
  run "$1/topics" speechssl topics fit --labels "$1/labels" --cuts "$train_cuts" --topics "$topics" \
    --passes "$topic_passes" --output "$1/topics"
  run "$1/topics/apply" speechssl topics apply --topics "$1/topics" --labels "$1/labels" \
    --cuts "$both" --output "$1/topics/labels"
  topic_options=(--objective.topics "$topics" --data.labels.topics "$1/topics/labels")
}

stage 6 "HuBERT Base, iteration 1, on MFCC clusters" && {
  pretrain $exp/hubert_base_it1 conf/hubert_base_it1.yaml $exp/km_mfcc/labels
}

stage 7 "next iteration: clusters of layer 6, K=500; then of iteration 2's layer 9 where asked" && {
  cluster $exp/hubert_base_it1 6 500 $exp/km_it1_l6
  labels=$exp/km_it1_l6/labels
  if [[ $recipe == hubert_base || $iterations == 2 ]]; then
    pretrain $exp/hubert_base_it2 conf/hubert_base_it2.yaml "$labels"
  fi
  case $recipe in
    hubert_base) ;;
    # WavLM Base and HuBERTopic Base use the labels of iteration 1; all others those of iteration 2
    # (layer 9), MR-HuBERT 1000 of them.
    wavlm_base) pretrain $exp/wavlm_base conf/wavlm_base.yaml "$labels" ;;
    hubertopic_base)
      learn_topics $exp/km_it1_l6
      pretrain $exp/hubertopic_base conf/hubertopic_base.yaml "$labels" "${topic_options[@]}" ;;
    hubert_large | hubert_xlarge | wavlm_base_plus | wavlm_large | mr_hubert_base | mr_hubert_large | \
      hubertopic_large | mr_hubertopic_base | mr_hubertopic_large)
      classes=500 clusters=$exp/km_it2_l9
      [[ $recipe != mr_* ]] || { classes=1000 clusters=$exp/km_it2_l9_k1000; }
      cluster $exp/hubert_base_it2 9 $classes "$clusters"
      topic_options=()
      [[ $recipe != *hubertopic* ]] || learn_topics "$clusters"
      pretrain "$exp/$recipe" "conf/$recipe.yaml" "$clusters/labels" "${topic_options[@]}" ;;
    *) log "--recipe: found $recipe, see --help"; exit 2 ;;
  esac
}
stage 8 "fine-tuning: see ../asr/run.sh" || true
exit 0
