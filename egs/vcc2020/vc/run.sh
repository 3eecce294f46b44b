#!/usr/bin/env bash
# Any-to-one voice conversion on the Voice Conversion Challenge 2020, task 1, with any upstream.
#
#   ./run.sh --corpus-dir /data/vcc2020 --upstream FOLDER --verifier FOLDER --recogniser FOLDER
#
# --corpus-dir: the folder into which the challenge's archives were unpacked (training source and target
# of task 1, evaluation, ground truth, transcriptions); speechssl/corpora/vcc2020.py says what it has
# to hold. A head for each target learns from its 70 utterances or so, then converts the 25 evaluation
# sentences of each of the four sources; the ground truth are the targets' own recordings of them.
# The vocoder learns from all training recordings: reconstruction, then against critics.
#
# Upstream: a folder, own (model.json) or of transformers. Published with Taco2-AR and a Parallel WaveGAN
# at 24 kHz (SUPERB-SG): MCD 8.47 dB, WER 38.3 %, accepted 77.25 % with filterbanks; 7.47, 8.0 and 98.50
# with HuBERT Base. Their MCD counts c0 and is of WORLD's analysis: only differences compare. Hardware: a
# GPU. Scores here: none yet; the recipe has only been run on a miniature corpus of the same layout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
corpus_dir=         # folder of the unpacked archives
targets="TEF1 TEF2 TEM1 TEM2"  # whose voices are learnt
sources="SEF1 SEF2 SEM1 SEM2"  # whose sentences are converted
upstream=           # model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
head=taco2ar        # network from frames to log-mel: conf/NAME.yaml
seed=1              # seed of the heads
steps=              # override the number of the heads' updates (for trying out)
vocoder=hifigan     # hifigan (trained here), griffin_lim, or a trained vocoder's folder
vocoder_steps=      # override the number of the vocoder's updates, in each of its runs
verifier=           # speaker model of `speechssl finetune`; empty: voices are not judged
recogniser=         # model of `speechssl finetune`; empty: content is not judged
overrides=          # further options of each training, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun)
source ../../../tools/shell/parse_options.sh
source path.sh
source ../../mini/vc/local/heads.sh

stage 1 "manifests" && {
  [[ -d $corpus_dir ]] || { log "--corpus-dir: found '$corpus_dir', want the folder of the archives"; exit 2; }
  run "$data/prepare" speechssl prepare vcc2020 --source "$corpus_dir" --output "$data"
  read -ra who <<<"$sources"
  run "$data/source_test" python local/choose.py --cuts "$data/cuts_test.jsonl.gz" \
    --speakers "${who[@]}" --output "$data/cuts_source_test.jsonl.gz"
  read -ra who <<<"$targets"
  run "$data/target_test" python local/choose.py --cuts "$data/cuts_test.jsonl.gz" \
    --speakers "${who[@]}" --output "$data/cuts_target_test.jsonl.gz"
  for target in $targets; do
    run "$data/$target" python local/choose.py --cuts "$data/cuts_train.jsonl.gz" \
      --speakers "$target" --output "$data/cuts_${target}_train.jsonl.gz" \
      --held "$data/cuts_${target}_valid.jsonl.gz"
  done
}

stage 7 "vocoder" && { [[ $vocoder != hifigan ]] || train_vocoder "$data/cuts_train.jsonl.gz" \
  "$data/cuts_${targets%% *}_valid.jsonl.gz"; }

natural "[$data/cuts_source_test.jsonl.gz,$data/cuts_target_test.jsonl.gz]" \
  "$data/cuts_source_test.jsonl.gz"
for target in $targets; do
  dir=$exp/$name/seed$seed/$target
  stage 8 "head, $dir" && train_head "$dir" "$data/cuts_${target}_train.jsonl.gz" \
    "$data/cuts_${target}_valid.jsonl.gz"
  stage 9 "convert, $dir" && convert "$dir" "$dir" "$data/cuts_source_test.jsonl.gz"
  stage 10 "score, $dir" && score "$dir" "$target" "[sentence]" "$data/cuts_source_test.jsonl.gz" \
    "$data/cuts_target_test.jsonl.gz"
done
stage 10 "table and report" && table_and_report "$exp/$name" "$targets"
exit 0
