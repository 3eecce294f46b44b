#!/usr/bin/env bash
# From raw audio to a scored recogniser, on synthetic speech, on a CPU.
#
# Generates a small multi-speaker, multilingual corpus; clusters MFCC; pretrains an encoder with
# HuBERT; clusters its features; pretrains a second iteration; fine-tunes it for ASR on a quarter
# of the transcripts beside the same model from scratch; decodes greedily and with lexicon and
# n-gram model; and scores both on held-out speakers.
#
#   ./run.sh                          # all of it: some ten minutes on two cores
#   ./run.sh --stage 6 --stop-stage 7 # some stages
#   ./run.sh --seeds "1 2 3"          # pretraining and fine-tuning once per seed
#
# Hardware: two CPU cores, 4 GB of memory. Expected scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1         # first stage
stop_stage=10   # last stage
seeds=1         # seeds of pretraining and fine-tuning, separated by blanks
hours=1.5       # hours of synthetic speech, all splits together
languages=en-us,es  # languages of the corpus
speakers=240    # synthetic speakers, all splits together
asr_language=en-us  # language of the recogniser
labelled=0.25   # share of that language's training speech that is transcribed
exp=exp         # where results go
data=data       # where the corpus goes
nproc=1         # ranks for training (torchrun); 1 uses all cores by threads
jobs=2          # recognisers to train and decode at a time
source ../../../tools/shell/parse_options.sh
source path.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }

stage 1 "corpus and manifests" && {
  run $data/synth speechssl synth --output $data/synth --hours "$hours" --languages "$languages" \
    --speakers "$speakers" --snr_db 20,40 --reverb false --seed 1
  for split in train valid test; do
    run $data/check_$split speechssl check --cuts $data/synth/cuts_$split.jsonl.gz \
      --output $data/cuts_$split.jsonl.gz --report $data/check_$split.json
  done
  for split in train valid test; do
    run $data/asr_$split python "$root/tools/subset_cuts.py" --cuts $data/cuts_$split.jsonl.gz \
      --language "$asr_language" --output $data/cuts_asr_$split.jsonl.gz
  done
  run $data/labelled python "$root/tools/subset_cuts.py" --cuts $data/cuts_asr_train.jsonl.gz \
    --fraction "$labelled" --output $data/cuts_asr_labelled.jsonl.gz
}

stage 2 "shards: not needed for a corpus that fits in the page cache" || true
stage 3 "features: MFCC and hidden states are computed as they are needed, never stored" || true

stage 4 "k-means on MFCC" && {
  run $exp/km_mfcc speechssl cluster fit --cuts "[$data/cuts_train.jsonl.gz]" \
    --features mfcc --cmvn true --classes 100 --output $exp/km_mfcc
}

both="[$data/cuts_train.jsonl.gz,$data/cuts_valid.jsonl.gz]"
stage 5 "labels of iteration 1" && {
  run $exp/km_mfcc/apply speechssl cluster apply --clusters $exp/km_mfcc --cuts "$both" \
    --output $exp/km_mfcc/labels
  # At the 25 labels per second that the encoder reads, so that both iterations can be compared.
  run $exp/km_mfcc/quality speechssl cluster quality --labels $exp/km_mfcc/labels --rate_hz 25 \
    --cuts "[$data/cuts_valid.jsonl.gz]" --output $exp/km_mfcc/quality.json
}

finetune() { # pretrained or scratch
  local init=(--config conf/scratch.yaml)
  [[ $1 == pretrained ]] && init=(--init "$dir/hubert_it2")
  run "$dir/asr_$1/train" train speechssl.bin.finetune --config conf/finetune.yaml "${init[@]}" \
    --data.train "[$data/cuts_asr_labelled.jsonl.gz]" \
    --data.valid "[$data/cuts_asr_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
    --output "$dir/asr_$1"
}

decode() { # pretrained or scratch
  local asr=$dir/asr_$1 beam=(--method beam --lm $exp/lm.arpa --lexicon $exp/lexicon.txt)
  run "$asr/greedy" speechssl decode --model "$asr" --cuts $data/cuts_asr_test.jsonl.gz \
    --method greedy --output "$asr/greedy"
  # The weights of the language model are chosen on the validation speakers.
  run "$asr/sweep" speechssl decode --model "$asr" --cuts $data/cuts_asr_valid.jsonl.gz \
    "${beam[@]}" --sweep true --output "$asr/sweep"
  run "$asr/beam" speechssl decode --model "$asr" --cuts $data/cuts_asr_test.jsonl.gz \
    "${beam[@]}" --tuned "$asr/sweep/best.json" --output "$asr/beam"
}

for seed in $seeds; do
  dir=$exp/seed$seed
  stage 6 "pretrain iteration 1, seed $seed" && {
    run "$dir/hubert_it1/train" train speechssl.bin.pretrain --config conf/pretrain_it1.yaml \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.labels.kmeans $exp/km_mfcc/labels --data.seed "$seed" --train.seed "$seed" \
      --output "$dir/hubert_it1"
  }
  stage 7 "iteration 2, seed $seed: clusters of learned features, then pretrain again" && {
    run "$dir/km_it1" speechssl cluster fit --cuts "[$data/cuts_train.jsonl.gz]" \
      --model "$dir/hubert_it1" --layer 2 --classes 100 --output "$dir/km_it1"
    run "$dir/km_it1/apply" speechssl cluster apply --clusters "$dir/km_it1" --cuts "$both" \
      --output "$dir/km_it1/labels"
    run "$dir/km_it1/quality" speechssl cluster quality --labels "$dir/km_it1/labels" \
      --cuts "[$data/cuts_valid.jsonl.gz]" --output "$dir/km_it1/quality.json"
    run "$dir/hubert_it2/train" train speechssl.bin.pretrain --config conf/pretrain_it2.yaml \
      --data.train "[$data/cuts_train.jsonl.gz]" --data.valid "[$data/cuts_valid.jsonl.gz]" \
      --data.labels.kmeans "$dir/km_it1/labels" --data.seed "$seed" --train.seed "$seed" \
      --init_from "$dir/hubert_it1" --output "$dir/hubert_it2"
    run "$dir/hubert_it2/layers" speechssl cluster layers --model "$dir/hubert_it2" \
      --cuts $data/cuts_valid.jsonl.gz --classes 100 --output "$dir/hubert_it2/layers.json"
  }
  stage 8 "fine-tune for ASR, seed $seed: pretrained, and the same model from scratch" && {
    side_by_side "$jobs" finetune pretrained scratch
  }
  stage 9 "decode, seed $seed" && {
    run $exp/lm speechssl lm --cuts "[$data/cuts_asr_train.jsonl.gz]" --order 3 \
      --output $exp/lm.arpa --lexicon $exp/lexicon.txt
    side_by_side "$jobs" decode pretrained scratch
  }
  stage 10 "score, seed $seed" && {
    for start in pretrained scratch; do
      run "$dir/asr_$start/score_greedy" speechssl score --decode "$dir/asr_$start/greedy"
      run "$dir/asr_$start/score_beam" speechssl score --decode "$dir/asr_$start/beam"
    done
    run "$dir/report" speechssl report $exp/km_mfcc "$dir/km_it1" "$dir/hubert_it1" "$dir/hubert_it2" "$dir/asr_pretrained" \
      "$dir/asr_scratch" --output "$dir/report.html"
  }
done

stage 10 "table" && python local/table.py --exp $exp
exit 0
