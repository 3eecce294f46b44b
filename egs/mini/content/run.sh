#!/usr/bin/env bash
# What is said, who says it, and where syllables end: ContentVec, NFA and Sylber beside HuBERT.
#
# Pretrains HuBERT, ContentVec (with as much computing) and NFA on the synthetic corpus of ../ssl;
# probes every layer for phones and speakers; compares NFA's embeddings, and those of factor models
# fitted to the frozen encoders, with means of frames on pairs of unheard speakers; and trains Sylber
# from HuBERT, first on segments between dips of the energy, then on its own, and scores its boundaries
# of syllables beside cuts at a fixed rate and at those dips. One table, mean and deviation over seeds.
#
#   ./run.sh                                     # 45 minutes of one core for each seed
#   ./run.sh --seeds "1 2 3"
#   ./run.sh --steps 200 --sylber-steps 100      # less
#
# ContentVec's labels are those of HuBERT, of unconverted speech. To convert it first, say it all in
# one voice (speechssl convert-voice, with a model of ../vc), and give the labels of what that wrote
# (speechssl cluster fit, and apply, --cuts "[converted/cuts.jsonl.gz]") as --labels.
# Hardware: two CPU cores, 4 GB of memory. Figures: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1           # first stage
stop_stage=10     # last stage
seeds=1           # seeds of pretraining, separated by blanks
steps=1000        # updates of HuBERT, ContentVec and NFA
factor_steps=150  # updates of the factor models of frozen encoders
sylber_steps=400  # updates of each of Sylber's two stages
merges="0.6 0.7 0.8 0.9"  # least cosines of frames with their segment's mean; validation cuts choose
data=../ssl/data  # where the manifests are
clusters=../ssl/exp/km_mfcc  # k-means, with its labels
labels=           # ContentVec's labels, if they are others than the k-means'
probe_hours=0.5   # hours of further speech for probes, pairs and boundaries
probe_speakers=60 # its speakers, all of them others
languages=en-us,es  # its languages
exp=exp           # where results go
nproc=1           # ranks for training (torchrun); 1 uses all cores by threads
overrides=        # further options of each training, such as "--data.num_workers 0"
source ../../../tools/shell/parse_options.sh
source path.sh
read -ra overridden <<<"$overrides"
labels=${labels:-$clusters/labels}
train_cuts=$data/cuts_train.jsonl.gz
valid_cuts=$data/cuts_valid.jsonl.gz
probe_cuts="[$data/probe/cuts_train.jsonl.gz,$data/probe/cuts_valid.jsonl.gz,$data/probe/cuts_test.jsonl.gz]"
heard_cuts=$data/probe/cuts_train.jsonl.gz   # most of the speech for probes

# The stages of ../ssl that make what is missing; of other places only their own recipe knows.
ssl() { # first stage, last stage, what is missing
  [[ $data == ../ssl/data && $clusters == ../ssl/exp/km_mfcc ]] || {
    log "found no $3; want the output of the recipe that --data and --clusters belong to: run that"
    exit 2
  }
  ../ssl/run.sh --stage "$1" --stop-stage "$2"
}

stage 1 "corpus, and speech for probes" && {
  [[ -f $train_cuts && -f $valid_cuts ]] || ssl 1 1 "$train_cuts and $valid_cuts"
  run "$data/probe" speechssl synth --output "$data/probe" --hours "$probe_hours" \
    --languages "$languages" --speakers "$probe_speakers" --snr_db 20,40 --reverb false --seed 2
}
stage 4 "k-means and labels" && {
  [[ -f $clusters/labels/meta.json ]] || ssl 4 5 "$clusters/labels"
}
stage 5 "labels of speakers, and of segments between dips of the energy" && {
  run "$exp/speakers" python local/speakers.py --train "$train_cuts" --valid "$valid_cuts" \
    --output "$exp/speakers/labels" --number "$exp/speakers/number"
  run "$exp/energy" speechssl segment --method energy --cuts "[$train_cuts,$valid_cuts]" \
    --labels "$exp/energy/labels" --output "$exp/energy"
}

pretrain() { # configuration, folder, further options
  local config=$1 output=$2
  shift 2
  run "$output/train" "$root/tools/shell/launch.sh" --nproc "$nproc" -- speechssl.bin.pretrain \
    --config "conf/$config.yaml" --data.train "[$train_cuts]" --data.valid "[$valid_cuts]" \
    --data.seed "$seed" --train.seed "$seed" --output "$output" \
    "$@" ${overridden[@]+"${overridden[@]}"}
}

for seed in $seeds; do
  dir=$exp/seed$seed
  stage 6 "pretrain HuBERT, ContentVec and NFA, seed $seed" && {
    pretrain hubert "$dir/hubert" --data.labels.kmeans "$clusters/labels" --train.steps "$steps"
    pretrain contentvec "$dir/contentvec" --data.labels.kmeans "$labels" \
      --data.labels.speakers "$exp/speakers/labels" \
      --objective.speakers "$(cat "$exp/speakers/number")" --train.steps "$steps"
    pretrain nfa "$dir/nfa" --data.labels.kmeans "$clusters/labels" --train.steps "$steps"
  }
  stage 7 "Sylber in two stages, seed $seed" && {
    pretrain sylber "$dir/sylber1" --init_from "$dir/hubert" --objective.segments energy \
      --data.labels.energy "$exp/energy/labels" --train.steps "$sylber_steps"
    pretrain sylber "$dir/sylber2" --init_from "$dir/sylber1" --train.steps "$sylber_steps"
  }
  stage 8 "probes of phones and speakers, seed $seed" && {
    for name in hubert contentvec nfa; do
      run "$dir/probe_$name" speechssl probe --model "$dir/$name" --cuts "$probe_cuts" \
        --output "$dir/probe_$name"
    done
  }
  stage 9 "embeddings and segments, seed $seed" && {
    run "$dir/factors/decode" speechssl decode --model "$dir/nfa" --cuts "$heard_cuts" \
      --method greedy --output "$dir/factors"
    for name in hubert nfa; do
      run "$dir/fit_$name/train" speechssl finetune --config conf/factors.yaml --init "$dir/$name" \
        --data.train "[$train_cuts]" --data.valid "[$valid_cuts]" \
        --data.labels.units "$clusters/labels" --data.seed "$seed" --train.seed "$seed" \
        --train.steps "$factor_steps" --output "$dir/fit_$name"
      run "$dir/factors_$name/decode" speechssl decode --model "$dir/fit_$name" --cuts "$heard_cuts" \
        --method greedy --output "$dir/factors_$name"
      run "$dir/mean_$name" speechssl extract --model "$dir/$name" --cuts "[$heard_cuts]" \
        --layers "[2]" --pool mean --output "$dir/mean_$name"
    done
    for name in hubert sylber1 sylber2; do
      for merge in $merges; do
        run "$dir/segments_$name/valid_$merge" speechssl segment --model "$dir/$name" --layer 3 \
          --merge_threshold "$merge" --cuts "[$valid_cuts]" --reference syllable \
          --output "$dir/segments_$name/valid_$merge"
      done
      best=$(python local/best.py "$dir/segments_$name")
      run "$dir/segments_$name" speechssl segment --model "$dir/$name" --layer 3 \
        --merge_threshold "$best" --cuts "$probe_cuts" --reference syllable \
        --output "$dir/segments_$name"
    done
    for name in energy rate; do
      run "$exp/segments_$name" speechssl segment --method "$name" --cuts "$probe_cuts" \
        --reference syllable --output "$exp/segments_$name"
    done
  }
  stage 10 "score pairs of utterances, seed $seed" && {
    for name in factors factors_hubert factors_nfa mean_hubert mean_nfa; do
      run "$dir/$name/pairs" python local/pairs.py --embeddings "$dir/$name" \
        --cuts "$heard_cuts" --output "$dir/$name/pairs.json"
    done
  }
done

stage 10 "table" && {
  python local/table.py --exp "$exp"
}
exit 0
