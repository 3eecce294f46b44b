# shellcheck shell=bash
# Sourced by a recipe: from $upstream and $name, the options `start` of `speechssl finetune`, and the
# name of the results' folder.
# shellcheck disable=SC2034
case $upstream in
  logmel | random) start=(--config "$(dirname "${BASH_SOURCE[0]}")/$upstream.yaml"); name=${name:-$upstream} ;;
  *)
    if [[ ! -d $upstream ]]; then
      log "--upstream: found no folder '$upstream', want logmel, random, a folder with model.json (own), or one with config.json (transformers)"
      exit 2
    fi
    start=(--init "$upstream"); name=${name:-$(basename "$upstream")} ;;
esac
