#!/usr/bin/env bash
# Any-to-any voice conversion on VCTK with any upstream, between speakers that training never hears.
#
#   ./run.sh --vctk /data/VCTK-Corpus-0.92 --upstream FOLDER --recogniser FOLDER
#   ./run.sh --vctk /data/VCTK-Corpus --release 0.80 ...
#
# A verifier learns the training speakers, and its embeddings tell the head whose voice to take on:
# means of 10 recordings of the speaker, of unseen ones too. Converted are sentences that all unseen
# speakers say (the rainbow passage), from each to each, so that the target's own recording is there to
# compare with. The vocoder learns from the training recordings: reconstruction, then against critics.
#
# The verifier that tells the head whose voice it is also judges it; a model cannot please it but by
# what it knows of speakers it never heard.
#
# --vctk holds wav48_silence_trimmed (release 0.92) or wav48 (0.80), txt and speaker-info.txt. Upstream:
# a folder, own (model.json) or of transformers. A verifier of your own may be given. Hardware: a GPU, a
# day for the published 50,000 updates of Taco2-AR. Scores here: none yet; the recipe has only been run
# on a miniature corpus of the same layout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stage=1             # first stage
stop_stage=10       # last stage
vctk=               # the corpus folder
release=0.92        # 0.92 (FLAC of two microphones) or 0.80 (WAV)
microphone=mic2     # of release 0.92
unseen="p225 p226 p227 p228"  # speakers to convert between
test_sentences=5    # sentences that all of them say
upstream=           # model's folder: own or transformers
name=               # folder of its results; empty: that of the upstream
head=taco2ar        # network from frames to log-mel: conf/NAME.yaml
seed=1              # seed of the head
steps=              # override the number of the head's updates (for trying out)
vocoder=hifigan     # hifigan (trained here), griffin_lim, or a trained vocoder's folder
vocoder_steps=      # override the number of the vocoder's updates, in each of its runs
verifier=           # speaker model of `speechssl finetune`; empty: trained here
verifier_steps=3000 # its updates, if it is trained here
recogniser=         # model of `speechssl finetune`; empty: content is not judged
overrides=          # further options of each training, separated by blanks
exp=exp             # where results go
data=data           # where manifests go
nproc=1             # ranks for training (torchrun)
source ../../../tools/shell/parse_options.sh
source path.sh
source ../../mini/vc/local/heads.sh
case $release in
  0.92) layout="{use_edinburgh_vctk_url: true, mic_id: $microphone}" ;;
  0.80) layout="{}" ;;
  *) log "--release: found $release, want 0.92 or 0.80"; exit 2 ;;
esac

stage 1 "manifests, and who is converted" && {
  [[ -d $vctk ]] || { log "--vctk: found '$vctk', want the corpus folder"; exit 2; }
  run "$data/prepare" speechssl prepare lhotse_recipe --name vctk --source "$vctk" \
    --arguments "$layout" --output "$data"
  read -ra who <<<"$unseen"
  run "$data/divide" python local/divide.py --cuts "$data/cuts_all.jsonl.gz" --unseen "${who[@]}" \
    --test "$test_sentences" --output "$data"
}

stage 7 "vocoder and verifier" && {
  [[ $vocoder != hifigan ]] || train_vocoder "$data/cuts_train.jsonl.gz" "$data/cuts_valid.jsonl.gz"
  if [[ -z $verifier ]]; then
    run "$exp/verifier/train" train speechssl.bin.finetune --config "$mini/conf/verifier.yaml" \
      --config ../../realmini/upstream/logmel.yaml --data.train "[$data/cuts_train.jsonl.gz]" \
      --data.valid "[$data/cuts_valid.jsonl.gz]" --train.steps "$verifier_steps" \
      --head.channels 512 --head.embedding_dim 192 --output "$exp/verifier" ${more[@]+"${more[@]}"}
  fi
}
verifier=${verifier:-$exp/verifier}

stage 8 "embeddings of the training speakers, and the head" && {
  run "$exp/embeddings" speechssl decode --model "$verifier" --output "$exp/embeddings" \
    --cuts "[$data/cuts_train.jsonl.gz,$data/cuts_valid.jsonl.gz]"
  train_head "$exp/$name/head$seed" "$data/cuts_train.jsonl.gz" "$data/cuts_valid.jsonl.gz" \
    --head.embeddings "$exp/embeddings"
}

natural "$data/cuts_unseen.jsonl.gz" "$data/cuts_unseen.jsonl.gz"
for target in $unseen; do
  dir=$exp/$name/seed$seed/$target
  stage 9 "convert, $dir" && {
    references=$(paste -sd , "$data/references_$target.txt")
    convert "$exp/$name/head$seed" "$dir" "$data/cuts_to_$target.jsonl.gz" \
      --target_audio "[$references]" --verifier "$verifier"
  }
  stage 10 "score, $dir" && score "$dir" "$target" "[text]" "$data/cuts_to_$target.jsonl.gz" \
    "$data/cuts_unseen.jsonl.gz"
done
stage 10 "table and report" && table_and_report "$exp/$name" "$unseen"
exit 0
