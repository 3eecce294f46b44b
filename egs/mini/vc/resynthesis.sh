#!/usr/bin/env bash
# What a representation keeps of content, speaker and prosody: speech made again of log-mel frames, of each
# layer of an encoder, of units at several K, and of units with F0.
#
#   ./run.sh --stop-stage 7 && ./resynthesis.sh
#
# For each representation a head learns all speakers' log-mel from it and the speaker's embedding; nothing
# else tells it what was said and how, unless the representation's name ends with _f0. Then two tables:
#   own      the target's held-out recordings, made again in her own voice, frame by frame beside them: WER is
#            the content that was kept, F0 correlation and voicing the prosody;
#   others   the same sentences by other speakers, in the target's voice: what is nearer to its source than to
#            the target has kept the speaker.
# Encoder, vocoder, verifier and corpus are those of ./run.sh. Scores: RESULTS.md. Hardware: two CPU cores, about
# forty minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1         # first stage
stop_stage=5    # last stage
upstream=hubert # of ./run.sh, whose layers and units are compared
layers="0 1 2 3"      # its layers
classes="50 100 200"  # numbers of units
unit_layer=3    # the layer whose frames become units
seed=1          # seed of ./run.sh, and of the heads
steps=1500      # updates of each head
vocoder=exp/vocoder   # a trained vocoder's folder, or griffin_lim
refine=16       # iterations of Griffin-Lim from a trained vocoder's phases; 0: as they are
ssl=../ssl/exp  # results of ../ssl: the recogniser
exp=exp         # results of ./run.sh; those of this recipe go to EXP/resynthesis
data=data       # its corpus
nproc=1         # ranks for training (torchrun)
jobs=2          # heads to train at a time
overrides=      # further options of each training
source ../../../tools/shell/parse_options.sh
source path.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
encoder=$exp/seed$seed/$upstream/encoder
asr=$ssl/seed$seed/asr_pretrained
own=$exp/resynthesis
for folder in "$encoder" "$exp/verifier" "$asr/sweep"; do
  [[ -d $folder ]] || {
    log "found no $folder; want what ./run.sh makes: ./run.sh --stop-stage 7 --upstreams $upstream"; exit 2
  }
done
[[ $vocoder == griffin_lim ]] && refine=0
names=(logmel)
for layer in $layers; do names+=("layer$layer"); done
for k in $classes; do names+=("units$k"); done
names+=("units${classes##* }_f0")

stage 1 "all speakers' speech but the sentences of the test, and embeddings of it" && {
  run "$own/cuts" python ../../realmini/vc/local/without.py \
    --cuts "$data/synth/cuts_train.jsonl.gz" --output "$own/cuts_train.jsonl.gz" \
    --without "$data/cuts_natural.jsonl.gz" "$data/cuts_target_valid.jsonl.gz"
  run "$own/embeddings" speechssl decode --model "$exp/verifier" --cuts "$own/cuts_train.jsonl.gz" \
    --output "$own/embeddings"
}

stage 2 "units" && for k in $classes; do
  run "$own/clusters$k" speechssl cluster fit --cuts "[$own/cuts_train.jsonl.gz]" --model "$encoder" \
    --layer "$unit_layer" --classes "$k" --output "$own/clusters$k"
done

learn() { # representation
  local start=(--init "$encoder") f0=false k=${1%_f0}
  [[ $1 == *_f0 ]] && f0=true
  case $1 in
    logmel) start=(--config ../../realmini/upstream/logmel.yaml) ;;
    layer*) start+=(--head.layer "${1#layer}") ;;
    units*) start+=(--head.layer "$unit_layer" --head.clusters "$own/clusters${k#units}") ;;
  esac
  run "$own/heads/$1/train" train speechssl.bin.finetune --config conf/convnext.yaml "${start[@]}" \
    --data.train "[$own/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_target_valid.jsonl.gz]" \
    --head.embeddings "$own/embeddings" --head.pitch "$f0" --head.changed_voices 0 \
    --head.standardise false --train.best_metric l1 --data.seed "$seed" --train.seed "$seed" \
    --train.steps "$steps" --output "$own/heads/$1" ${more[@]+"${more[@]}"}
}
stage 3 "heads" && side_by_side "$jobs" learn "${names[@]}"

beam=(--method beam --lm "$ssl/lm.arpa" --lexicon "$ssl/lexicon.txt" --tuned "$asr/sweep/best.json")
hear() { # folder, cuts
  run "$1" speechssl decode --model "$asr" --cuts "$2" "${beam[@]}" --output "$1"
}
make() { # own or others, representation, cuts
  local made=$own/$1/seed$seed/$2/converted
  run "$made" speechssl convert-voice --model "$own/heads/$2" --vocoder "$vocoder" --refine "$refine" \
    --target "$target" --input "$3" --output "$made"
  hear "$made/asr" "$made/cuts.jsonl.gz"
}
stage 4 "make, and listen with verifier and recogniser" && {
  target=$(cat "$data/target.txt")
  run "$own/natural" speechssl decode --model "$exp/verifier" --cuts "$data/cuts_natural.jsonl.gz" \
    --output "$own/natural"
  hear "$own/own/asr" "$data/cuts_target_test.jsonl.gz"
  hear "$own/others/asr" "$data/cuts_source_test.jsonl.gz"
  for name in "${names[@]}"; do
    make own "$name" "$data/cuts_target_test.jsonl.gz"
    make others "$name" "$data/cuts_source_test.jsonl.gz"
    made=$own/others/seed$seed/$name/converted
    run "$made/speaker" speechssl decode --model "$exp/verifier" --cuts "$made/cuts.jsonl.gz" \
      --output "$made/speaker"
  done
}

score() { # own or others, representation, cuts of the sources, further options
  local made=$own/$1/seed$seed/$2/converted
  run "$own/$1/seed$seed/$2/score" speechssl score-conversion --converted "$made" --sources "$3" \
    --targets "$data/cuts_target_test.jsonl.gz" --match "[sentence]" --transcripts "$made/asr" \
    --source_transcripts "$own/$1/asr" "${@:4}"
}
stage 5 "score, tables and reports" && {
  for name in "${names[@]}"; do
    score own "$name" "$data/cuts_target_test.jsonl.gz" --dtw false
    score others "$name" "$data/cuts_source_test.jsonl.gz" --natural "$own/natural" \
      --embeddings "$own/others/seed$seed/$name/converted/speaker"
  done
  for part in own others; do
    log "$part"
    python local/table.py --exp "$own/$part" --upstreams "${names[*]}"
    speechssl report "${names[@]/#/$own/$part/seed$seed/}" --output "$own/$part/report.html"
  done
}
exit 0
