#!/usr/bin/env bash
# Voice conversion of real recordings with any upstream: minutes of a target's voice, and what so
# little can do.
#
#   ./run.sh --corpus-dir /path/to/corpora                                      # VCTK sample
#   ./run.sh --corpus-dir /path/to/corpora --upstream ../../an4/asr/exp/hubert/seed1/it2
#   ./run.sh --corpus-dir /path/to/corpora --corpus nemo_polish --match "[text,emotion]"
#   ./run.sh --corpus-dir /path/to/corpora --corpus ravdess --sentence statement --test-sentences 1 \
#     --valid-sentences 0 --match "[text,emotion,intensity]"
#   ./run.sh --corpus-dir /path/to/corpora --corpus ljspeech_sample             # no parallel sentences
#
# VCTK sample: 4 speakers, 10 sentences each (a minute of the target), two of which are converted. nEMO
# and RAVDESS: actors who say the same sentences in the same moods. LJ Speech: its reader as target,
# the VCTK sample as sources; nobody says the same there, so only voice, content and sound are judged.
# The vocoder learns from the training recordings of --vocoder-corpora, the verifier from speakers that
# are never converted. --corpus-dir holds one folder per corpus (see speechssl/corpora/jsonl.py).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
corpus_dir=         # folder of corpora
corpus=vctk_sample  # vctk_sample, nemo_polish, ravdess, ljspeech_sample, or another with speakers
target=0            # whose voice is learnt: name, or number among the corpus's speakers
sentence=sentence   # field that numbers the sentences
match="[sentence]"  # fields in which source and reference agree
test_sentences=2    # sentences that are converted
valid_sentences=1   # sentences to validate on; 0: a tenth of the target's recordings
upstream=logmel     # logmel, random, or a model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
head=convnext       # network from frames to log-mel: convnext or taco2ar
seeds=1             # seeds, separated by blanks
steps=600           # updates of the head
changed_voices=1    # share of the target's utterances that the upstream hears in other voices
vocoder=spectral    # spectral (trained here), griffin_lim, or a trained vocoder's folder
refine=16           # iterations of Griffin-Lim from a trained vocoder's phases; 0: as they are
vocoder_corpora=vctk_sample,ljspeech_sample,librispeech_sample,an4  # whose training speech it learns from
vocoder_steps=2000  # updates of the vocoder
verifier_corpora=an4,speechocean762  # whose training speakers teach the verifier
verifier_steps=600  # updates of the verifier
recogniser=         # model of `speechssl finetune` for WER and CER; empty: none
overrides=          # further options of each training, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
source ../upstream/start.sh
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
mini=../../mini/vc
own=$data/$corpus

stage 1 "manifests, and what is converted" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want a folder of corpora"; exit 2; }
  run "$data/vocoder/prepare" speechssl prepare jsonl --source "$corpus_dir" \
    --only "[$vocoder_corpora]" --output "$data/vocoder"
  run "$data/verifier/prepare" speechssl prepare jsonl --source "$corpus_dir" \
    --only "[$verifier_corpora]" --output "$data/verifier"
  run "$data/verifier/hold_out" python "$root/tools/hold_out.py" \
    --cuts "$data/verifier/cuts_train.jsonl.gz" --field speaker \
    --train "$data/verifier/cuts_known.jsonl.gz" --valid "$data/verifier/cuts_held.jsonl.gz"
  if [[ $corpus == ljspeech_sample ]]; then
    run "$own/sources" speechssl prepare jsonl --source "$corpus_dir" --only "[vctk_sample]" \
      --output "$own/sources"
    run "$own/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$corpus]" --output "$own"
    cp "$own/cuts_train.jsonl.gz" "$own/cuts_target_train.jsonl.gz"
    cp "$own/cuts_test.jsonl.gz" "$own/cuts_target_valid.jsonl.gz"
    cp "$own/cuts_train.jsonl.gz" "$own/cuts_target_test.jsonl.gz"
    cp "$own/sources/cuts_test.jsonl.gz" "$own/cuts_source_test.jsonl.gz"
    echo ljspeech_sample-LJ >"$own/target.txt"
  else
    run "$own/prepare" speechssl prepare jsonl --source "$corpus_dir" --only "[$corpus]" \
      --one_split all --output "$own"
    run "$own/divide" python $mini/local/divide.py --cuts "$own/cuts_all.jsonl.gz" \
      --field "$sentence" --target "$target" --test "$test_sentences" --valid "$valid_sentences" \
      --output "$own"
  fi
}

synthesiser=$vocoder
[[ $vocoder == spectral ]] && synthesiser=$exp/$corpus/vocoder
[[ $vocoder == griffin_lim ]] && refine=0
stage 7 "vocoder and verifier" && {
  if [[ $vocoder == spectral ]]; then
    # The vocoder hears neither the sources nor the references of the test.
    run "$exp/$corpus/vocoder/cuts" python local/without.py --cuts "$data/vocoder/cuts_train.jsonl.gz" \
      --without "$own/cuts_target_test.jsonl.gz" "$own/cuts_source_test.jsonl.gz" \
      --output "$exp/$corpus/vocoder/cuts_train.jsonl.gz"
    run "$exp/$corpus/vocoder/train" train speechssl.bin.vocoder --config $mini/conf/vocoder.yaml \
      --data.train "[$exp/$corpus/vocoder/cuts_train.jsonl.gz]" \
      --data.valid "[$own/cuts_target_valid.jsonl.gz]" --train.steps "$vocoder_steps" \
      --output "$exp/$corpus/vocoder" ${more[@]+"${more[@]}"}
  fi
  run "$exp/verifier/train" train speechssl.bin.finetune --config $mini/conf/verifier.yaml \
    --config ../upstream/logmel.yaml --data.train "[$data/verifier/cuts_known.jsonl.gz]" \
    --data.valid "[$data/verifier/cuts_held.jsonl.gz]" --train.steps "$verifier_steps" \
    --output "$exp/verifier" ${more[@]+"${more[@]}"}
}

# The published ranges: with so little speech milder ones let the source's voice through (RESULTS.md).
voices=(--head.changed_voices "$changed_voices" --head.voice.formant_ratio 1.4
  --head.voice.pitch_ratio 2 --head.voice.equaliser_db 12)
natural="[$own/cuts_target_test.jsonl.gz,$own/cuts_source_test.jsonl.gz]"
for seed in $seeds; do
  dir=$exp/$corpus/seed$seed/$name
  made=$dir/converted
  stage 8 "head, $dir" && {
    run "$dir/train" train speechssl.bin.finetune --config "$mini/conf/$head.yaml" "${start[@]}" "${voices[@]}" \
      --data.train "[$own/cuts_target_train.jsonl.gz]" \
      --data.valid "[$own/cuts_target_valid.jsonl.gz]" --data.seed "$seed" --train.seed "$seed" \
      --train.steps "$steps" --output "$dir" ${more[@]+"${more[@]}"}
  }
  stage 9 "convert and listen, $dir" && {
    run "$exp/$corpus/natural" speechssl decode --model "$exp/verifier" --cuts "$natural" \
      --output "$exp/$corpus/natural"
    run "$made" speechssl convert-voice --model "$dir" --vocoder "$synthesiser" \
      --refine "$refine" --input "$own/cuts_source_test.jsonl.gz" --output "$made"
    run "$made/speaker" speechssl decode --model "$exp/verifier" --cuts "$made/cuts.jsonl.gz" \
      --output "$made/speaker"
    if [[ -n $recogniser ]]; then
      run "$made/asr" speechssl decode --model "$recogniser" --cuts "$made/cuts.jsonl.gz" \
        --output "$made/asr"
      run "$exp/$corpus/source_asr" speechssl decode --model "$recogniser" \
        --cuts "$own/cuts_source_test.jsonl.gz" --output "$exp/$corpus/source_asr"
    fi
  }
  stage 10 "score, $dir" && {
    heard=()
    [[ -n $recogniser ]] &&
      heard=(--transcripts "$made/asr" --source_transcripts "$exp/$corpus/source_asr")
    run "$dir/score" speechssl score-conversion --converted "$made" --match "$match" \
      --sources "$own/cuts_source_test.jsonl.gz" --targets "$own/cuts_target_test.jsonl.gz" \
      --target "$(cat "$own/target.txt")" --embeddings "$made/speaker" \
      --natural "$exp/$corpus/natural" ${heard[@]+"${heard[@]}"}
  }
done
stage 10 "table and report" && {
  names=()
  for folder in "$exp/$corpus"/seed*/*/; do names+=("$(basename "$folder")"); done
  python $mini/local/table.py --exp "$exp/$corpus" --upstreams "$(printf '%s\n' "${names[@]}" | sort -u | tr '\n' ' ')"
  speechssl report "$exp/$corpus"/seed*/*/ --output "$exp/$corpus/report.html"
}
exit 0
