#!/usr/bin/env bash
# Speaker verification on VoxCeleb with any upstream; and who of VoxCeleb1's 1251 speakers speaks.
#
# Trained on VoxCeleb2's dev (or, as in SUPERB, VoxCeleb1's dev), tested on the cleaned trials of
# VoxCeleb1-O, -E and -H. Phases: the head on the frozen encoder; both together; a large margin on longer,
# clean crops. Scores: cosine, AS-norm over the training speakers' means, PLDA, and AS-norm calibrated on
# training speakers left out, with durations; EER, minDCF, Cllr, DET curves in the report.
#
#   ./run.sh --voxceleb-one /data/VoxCeleb1 --voxceleb-two /data/VoxCeleb2 --musan /data/musan \
#     --rirs /data/RIRS_NOISES --upstream /models/wavlm-large
#   ./run.sh --voxceleb-one /data/VoxCeleb1 --train-on vox1 --system xvector --phases head  # SUPERB's
#   ./run.sh --voxceleb-one /data/VoxCeleb1 --identification true --stage 5     # speakers known
#
# Corpora: https://www.robots.ox.ac.uk/~vgg/data/voxceleb/ (VoxCeleb1: wav, or dev/wav and test/wav;
# VoxCeleb2: dev/wav, decoded from .m4a; trials and iden_split.txt beside them), and, if noise and rooms
# are to be added, https://www.openslr.org/17 (MUSAN) and https://www.openslr.org/28 (RIRS_NOISES).
# Hardware: a GPU, days on VoxCeleb2. Published scores: RESULTS.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=5        # last stage
voxceleb_one=             # VoxCeleb1's folder
voxceleb_two=             # VoxCeleb2's folder, to train on
lists=              # folder of veri_test2.txt, list_test_all2.txt, list_test_hard2.txt; empty: VOXCELEB_ONE
train_on=vox2       # vox2, or vox1 (then only VoxCeleb1-O can be scored)
trials=             # lists to score, of O E H; empty: all that the training allows
musan=              # MUSAN's folder: its noises, music and babble of its speech are added; empty: none
rirs=               # RIRS_NOISES: its simulated rooms are added; empty: none
upstream=logmel     # logmel, random, or a model's folder: own or transformers
system=ecapa        # ecapa, or xvector with AM-softmax as in SUPERB: conf/SYSTEM.yaml
phases="head tune large"  # head, tune (the encoder too), large (margin), one after the other
name=               # folder of its results; empty: that of the upstream, and the system
seed=1              # seed
identification=false  # also tell VoxCeleb1's speakers apart (SID): true or false
steps=              # override the number of updates of every phase (for trying out)
calibration_speakers=60  # training speakers left out, to calibrate on
overrides=          # further options of every training, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun); 1 uses all cores by threads
source ../../../tools/shell/parse_options.sh
source path.sh
given=$name
source ../../realmini/upstream/start.sh
name=${given:-${name}_$system}
train() { "$root/tools/shell/launch.sh" --nproc "$nproc" -- "$@"; }
read -ra more <<<"$overrides"
[[ -z $steps ]] || more+=(--train.steps "$steps")
lists=${lists:-$voxceleb_one}
declare -A list_of=([O]=veri_test2.txt [E]=list_test_all2.txt [H]=list_test_hard2.txt)
case $train_on in
  vox1) trials=${trials:-O}; all=veri_test2.txt
    [[ $trials == O ]] || { log "--trials: found '$trials' with --train-on vox1, want O: the others test speakers that it trains on"; exit 2; } ;;
  vox2) trials=${trials:-O E H}; all=list_test_all2.txt ;;
  *) log "--train-on: found '$train_on', want vox1 or vox2"; exit 2 ;;
esac
[[ -f conf/$system.yaml ]] || { log "--system: found '$system', want ecapa or xvector"; exit 2; }
for phase in $phases; do
  [[ " head tune large " == *" $phase "* ]] || { log "--phases: found '$phase', want some of head tune large"; exit 2; }
done
for list in $trials; do
  [[ -n ${list_of[$list]:-} ]] || { log "--trials: found '$list', want some of O E H"; exit 2; }
done
want_folder() { # option, folder, where to obtain it
  [[ -d $2 ]] || { log "$1: found '$2', want the corpus folder; $3"; exit 2; }
}

stage 1 "manifests, calibration trials" && {
  site=https://www.robots.ox.ac.uk/~vgg/data/voxceleb/
  want_folder --voxceleb-one "$voxceleb_one" $site
  run "$data/$train_on/test/prepare" speechssl prepare voxceleb1 --source "$voxceleb_one" \
    --task verification --trials "$lists/$all" --output "$data/$train_on/test"
  known=$data/$train_on/test/cuts_train.jsonl.gz
  if [[ $train_on == vox2 ]]; then
    want_folder --voxceleb-two "$voxceleb_two" $site
    run "$data/vox2/prepare" speechssl prepare voxceleb2 --source "$voxceleb_two" --output "$data/vox2/all"
    known=$data/vox2/all/cuts_dev.jsonl.gz
  fi
  run "$data/$train_on/divide" python local/divide.py --cuts "$known" \
    --calibration-speakers "$calibration_speakers" --output "$data/$train_on"
  run "$data/$train_on/trials" python "$root/tools/make_trials.py" --different video \
    --cuts "$data/$train_on/cuts_calibration.jsonl.gz" --output "$data/$train_on/calibration.txt"
  if [[ -n $musan ]]; then
    want_folder --musan "$musan" https://www.openslr.org/17
    run "$data/musan/prepare" speechssl prepare lhotse_recipe --name musan --source "$musan" \
      --arguments "{parts: [noise, music, speech]}" --output "$data/musan"
  fi
  if [[ -n $rirs ]]; then
    want_folder --rirs "$rirs" https://www.openslr.org/28
    run "$data/rirs/prepare" speechssl prepare lhotse_recipe --name rir_noise --source "$rirs" \
      --arguments "{parts: [sim_rir]}" --output "$data/rirs"
  fi
}

mixed=
if [[ -n $musan ]]; then  # the three kinds of MUSAN with the ratios of Snyder et al. 2018
  kinds="{cuts: $data/musan/cuts_noise.jsonl.gz, ratio_db: [0, 15]}"
  kinds+=", {cuts: $data/musan/cuts_music.jsonl.gz, ratio_db: [5, 15]}"
  kinds+=", {cuts: $data/musan/cuts_speech.jsonl.gz, ratio_db: [13, 20], count: [3, 7]}"
  mixed="probability: 0.6, noise_probability: 1.0, min_overlap: 1.0, max_overlap: 1.0, noises: [$kinds]"
fi
[[ -z $rirs ]] || mixed="${mixed:-probability: 0.0}, rir_probability: 0.5, rir_cuts: $data/rirs/cuts_sim_rir.jsonl.gz"
if [[ $upstream == logmel && $phases == *tune* ]]; then
  log "upstream logmel has nothing to tune: phase tune is left out"
  phases=${phases//tune/}
fi
from=("${start[@]}") configs=(--config "conf/$system.yaml") dir=
for phase in $phases; do
  before=$dir dir=$exp/$name/seed$seed/$phase
  noise=(); [[ -z $mixed ]] || noise=(--data.mixing "{$mixed}")
  case $phase in
    head) ;;
    tune) configs+=(--config conf/tune.yaml) ;;
    large) configs+=(--config conf/large.yaml); noise=() ;;
  esac
  [[ -z $before ]] || from=(--init "$before" --init_head true)
  stage 2 "train $dir" && {
    run "$dir/train" train speechssl.bin.finetune "${configs[@]}" "${from[@]}" "${noise[@]}" \
      --data.train "[$data/$train_on/cuts_train.jsonl.gz]" \
      --data.valid "[$data/$train_on/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --output "$dir" "${more[@]}"
  }
done

stage 3 "embed, $dir" && {
  for part in test/cuts_test cuts_cohort cuts_calibration; do
    to=$dir/${part##*cuts_}
    run "$to" speechssl decode --model "$dir" --cuts "$data/$train_on/$part.jsonl.gz" --output "$to"
  done
}

score() { # list, scores, options of score
  local to=$dir/$1_$2 file
  mkdir -p "$to"
  for file in embeddings.npy embeddings.jsonl decode.json; do ln -sf "../test/$file" "$to/$file"; done
  run "$to/score" speechssl score --decode "$to" --trials "$lists/${list_of[$1]}" "${@:3}"
}
stage 4 "score, $dir" && {
  normed=(--cohort "$dir/cohort" --cohort_means true --top 300)
  for list in $trials; do
    score "$list" cosine
    score "$list" asnorm "${normed[@]}"
    score "$list" plda --plda "$dir/cohort"
    score "$list" calibrated "${normed[@]}" --calibrate "$dir/calibration" \
      --calibrate_trials "$data/$train_on/calibration.txt" --calibrate_durations true
  done
  run "$dir/report" speechssl report "$dir" --output "$dir/report.html"
}

if [[ $identification == true ]]; then
  dir=$exp/$name/seed$seed/identification
  stage 5 "identification, $dir" && {
    want_folder --voxceleb-one "$voxceleb_one" https://www.robots.ox.ac.uk/~vgg/data/voxceleb/
    run "$data/identification/prepare" speechssl prepare voxceleb1 --source "$voxceleb_one" \
      --task identification --split_list "$lists/iden_split.txt" --output "$data/identification"
    run "$dir/train" train speechssl.bin.finetune --config conf/identification.yaml "${start[@]}" \
      --data.train "[$data/identification/cuts_train.jsonl.gz]" \
      --data.valid "[$data/identification/cuts_valid.jsonl.gz]" \
      --data.seed "$seed" --train.seed "$seed" --output "$dir" "${more[@]}"
    run "$dir/test" speechssl decode --model "$dir" --cuts "$data/identification/cuts_test.jsonl.gz" \
      --output "$dir/test"
    run "$dir/score" speechssl score --decode "$dir/test"
  }
fi
exit 0
