# shellcheck shell=bash
# Sourced by a script after its variable block: turns each variable that has a comment on its line
# into an option.
#
#   steps=100   # optimiser updates          ->   --steps 200
#
# `--help` prints the script's header comment and the variables with their comments. An unknown
# option is an error. A dash in an option stands for an underscore in the variable.

_script=${BASH_SOURCE[1]}
# A recipe changes into its own folder before it comes here.
[[ -f $_script ]] || _script=$(basename "$_script")

_print_help() {
  # The header comment, without the shebang, up to the first line that is no comment.
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$_script"
  printf '\nOptions, with their defaults:\n'
  awk '/parse_options\.sh/ { exit }
       /^[a-z_]+=.*  *# / {
         split($0, part, "="); name = part[1]; gsub("_", "-", name)
         rest = substr($0, length(part[1]) + 2); note = ""
         if (match(rest, /  *# .*/)) { note = substr(rest, RSTART); sub(/ *# /, "", note); rest = substr(rest, 1, RSTART - 1) }
         printf "  --%-20s %s  [%s]\n", name, note, rest
       }' "$_script"
}

while (($#)); do
  case $1 in
    -h | --help) _print_help; exit 0 ;;
    --*)
      _name=${1#--}; _value=
      if [[ $_name == *=* ]]; then _value=${_name#*=}; _name=${_name%%=*}; _shift=1
      else _value=${2-}; _shift=2; fi
      _name=${_name//-/_}
      if [[ ! $_name =~ ^[a-z_]+$ ]] || ! grep -q "^$_name=.* # " "$_script"; then
        printf '%s: found option %s, which is unknown; see --help\n' "$(basename "$_script")" "$1" >&2; exit 2
      fi
      if ((_shift > $#)); then
        printf '%s: option %s wants a value\n' "$(basename "$_script")" "$1" >&2; exit 2
      fi
      printf -v "$_name" '%s' "$_value"; shift "$_shift" ;;
    *) printf '%s: found argument %s, want --option value; see --help\n' "$(basename "$_script")" "$1" >&2; exit 2 ;;
  esac
done
unset _name _value _shift
