#!/usr/bin/env bash
# Runs a command on all workers of a Cloud TPU slice, follows it, and ends with its status.
#
#   bash scripts/run_tpu_pod.sh --name=my-tpu --zone=us-west4-a --type=v5litepod-16 --create \
#     -- python -m aligner_jax.train --config=configs/llama7b_alpaca.py --workdir=/shared/run
#
#   --name=NAME --zone=ZONE     the slice
#   --project=PROJECT           default: gcloud's own
#   --create                    makes the slice where there is none
#   --type=TYPE                 what is made: v4-32, v5litepod-16, v5p-8, v6e-16, tpu7x-8, …
#   --version=VERSION           its runtime; default: the one for JAX on that type
#   --spot                      makes one that is cheaper and can be taken away at any time
#   --queued                    makes it through a queue, which waits until there is room; implies --create
#   --wait=MINUTES              how long it may take until the slice is ready; default 720
#   --with-create=FLAG          one more flag for gcloud's create, such as --network=NETWORK; may be repeated
#   --with-ssh=FLAG             one more flag for gcloud's ssh, such as --internal-ip; may be repeated
#   --repo=URL --rev=REVISION   what the workers check out; default: this repository's origin, at the commit that is
#                               checked out here, which must be pushed, with nothing uncommitted beside it
#   --workdir=DIR               is added to the command; it must outlive the slice if the run is to
#   --resume-on-preemption      makes a slice that was taken away again, and runs the command again; implies --create
#   --delete                    deletes the slice when the command has ended
#   --poll=SECONDS              between two looks at the slice's state; default 30
#   --dry-run                   prints the gcloud commands instead of running them
#
# The command runs in the repository's root, with its environment's python, and goes on when the connection is lost or
# this script is interrupted: the same line follows it again. On each worker its output is ~/aligner_jax_run/log. Many
# workers at once need the ssh key in an agent: ssh-add ~/.ssh/google_compute_engine
set -euo pipefail
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=scripts/lib/tpu_worker.sh
source "$root/scripts/lib/tpu_worker.sh"
# shellcheck source=scripts/lib/tpu_slice.sh
source "$root/scripts/lib/tpu_slice.sh"

name='' zone='' project='' create='' type='' version='' spot='' queued='' wait=720 repo='' rev='' workdir=''
resume='' delete='' poll=30 dry_run=''
with_create=() with_ssh=()
# Resources to clean up, or to report, when the script ends.
there='' made='' launched='' status='' interrupted='' attempts=0

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}"; }

# Prints a note for the user; in a dry run it is a comment between pasteable commands.
note() { if [ -n "$dry_run" ]; then echo "# $*"; else echo "$*" >&2; fi; }

fail() {
  echo "error: $*" >&2
  exit 1
}

mistake() {
  echo "error: $*; --help tells more" >&2
  exit 2
}

# Prints a command, and runs it unless this is a dry run.
run() {
  if [ -n "$dry_run" ]; then
    printf '%s\n' "$(quoted "$@")"
  else
    printf '+ %s\n' "$(quoted "$@")" >&2
    "$@"
  fi
}

# set_flag --NAME=VALUE
set_flag() {
  local flag=${1%%=*}
  printf -v "${flag#--}" '%s' "${1#*=}"
}

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --help | -h) usage && exit 0 ;;
      --) shift && command=("$@") && return ;;
      --name=* | --zone=* | --project=* | --type=* | --version=* | --repo=* | --rev=* | --workdir=*)
        [ -n "${1#*=}" ] || mistake "${1%%=*} is empty"
        set_flag "$1" ;;
      --wait=* | --poll=*)
        case ${1#*=} in '' | *[!0-9]*) mistake "$1 is not a whole number" ;; esac
        set_flag "$1" ;;
      --with-create=*) with_create+=("${1#*=}") ;;
      --with-ssh=*) with_ssh+=("${1#*=}") ;;
      --create) create=yes ;;
      --spot) spot=yes ;;
      --queued) queued=yes create=yes ;;
      --resume-on-preemption) resume=yes create=yes ;;
      --delete) delete=yes ;;
      --dry-run) dry_run=yes ;;
      --name | --zone | --project | --type | --version | --repo | --rev | --workdir | --wait | --poll | --with-*)
        mistake "$1 is written $1=VALUE" ;;
      -*) mistake "$1 is not a flag of this script" ;;
      *) mistake "'$1' is not a flag; the command to run comes after --" ;;
    esac
    shift
  done
  mistake "there is no command: it comes after --"
}

check_flags() {
  [ ${#command[@]} -gt 0 ] || mistake "there is no command after --"
  [ -n "$name" ] || mistake "--name=NAME is missing"
  [ -n "$zone" ] || mistake "--zone=ZONE is missing"
  [ -z "$create" ] || [ -n "$type" ] || mistake "--type=TYPE is missing: what is to be made, for example v5litepod-16"
  if [ -n "$create" ] && [ -z "$version" ]; then
    case $type in
      v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
      v5litepod-*) version=v2-alpha-tpuv5-lite ;;
      v5p-*) version=v2-alpha-tpuv5 ;;
      v6e-*) version=v2-alpha-tpuv6e ;;
      tpu7x-*) version=v2-alpha-tpu7-ubuntu2404 ;;
      *) mistake "no runtime is known for the type $type: give --version=VERSION" ;;
    esac
  fi
  if [ -n "$workdir" ]; then command+=("--workdir=$workdir"); fi
  case "$resume ${command[*]}" in
    yes*--workdir*) ;;
    yes*) mistake "--resume-on-preemption needs --workdir=DIR, a folder that outlives the slice" ;;
  esac
}

# Sets repo and rev to the commit that is checked out here, in a form that workers can fetch, unless they were given.
find_revision() {
  if [ -z "$repo" ]; then
    repo=$(git -C "$root" remote get-url origin 2>/dev/null) ||
      fail "$root has no git remote named origin that the workers could clone: give --repo=URL"
  fi
  # Workers do not have the user's keys.
  case $repo in
    git@*:*) repo=${repo#git@} && repo=https://${repo%%:*}/${repo#*:} ;;
    ssh://git@*) repo=https://${repo#ssh://git@} ;;
    *://*@*) fail "the repository's URL holds a name or a password, which would be shown: give --repo=URL without it" ;;
  esac
  [ -z "$rev" ] || return 0
  [ -z "$(git -C "$root" status --porcelain)" ] ||
    fail "$root has uncommitted changes, which the workers would not get: commit and push them, or give --rev=REVISION"
  rev=$(git -C "$root" rev-parse HEAD)
  [ -n "$(git -C "$root" for-each-ref --contains "$rev" refs/remotes)" ] ||
    fail "$root is at a commit that is not pushed, so the workers cannot get it: push it, or give --rev=REVISION"
}

on() { # on WORKERS SCRIPT
  run gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="$1" ${with_ssh[@]+"${with_ssh[@]}"} --command="$2"
}

# Sets status to the command's, or to nothing if the workers cannot be reached or cannot start the command.
attempt() {
  local ended worker code
  status=''
  note "Setting up all workers"
  on all "$(set_up_script "$repo" "$rev")" || return 0
  note "Starting the command on all workers"
  attempts=$((attempts + 1))
  on all "$(launch_script "$(date +%s)-$$-$attempts" "${command[@]}")" || return 0
  launched=yes
  note "Following worker 0"
  until on 0 "$(follow_script)"; do
    if is_gone "$(state_of tpu-vm)"; then return 0; fi
    note "Worker 0 cannot be reached; trying again"
    sleep "$poll"
  done
  note "Asking all workers how it ended"
  if [ -n "$dry_run" ]; then on all "$(collect_script)" && return 0; fi
  ended=$(on all "$(collect_script)" | grep '^ended ' | sort) || return 0
  launched='' status=0
  while read -r _ worker code; do
    [ "$code" = 0 ] || note "$worker ended with status $code"
    [ "$status" != 0 ] || status=$code
  done <<<"$ended"
}

# Called by the trap.
# shellcheck disable=SC2317
finish() {
  local code=$?
  trap - EXIT
  rm -f "$scratch"
  if [ -n "$launched" ]; then note "The command goes on on the workers; the same line follows it again."; fi
  # The slice stays while a command still runs on it, this one or an earlier one.
  if [ -n "$there" ] && [ -n "$delete" ] && [ -z "$launched$interrupted" ] && [ -n "$status$made" ]; then
    delete_slice || code=1
  elif [ -n "$there" ]; then
    note "$name is still there and costs what it costs; this deletes it: $(quoted "${delete_command[@]}")"
  fi
  exit "$code"
}

command=()
parse "$@"
check_flags
find_revision
place=("--zone=$zone" ${project:+"--project=$project"})
delete_command=(gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet)
[ -z "$queued" ] || delete_command=(gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet)

if [ -n "$dry_run" ]; then
  [ -z "$create" ] || create_slice
  [ -z "$queued" ] || { note "Until it is ACTIVE:" && run gcloud compute tpus queued-resources describe "$name" "${place[@]}"; }
  attempt
  [ -z "$delete" ] || delete_slice
  exit 0
fi

type -P gcloud >/dev/null || fail "gcloud is not installed here; it comes with the Google Cloud CLI"
scratch=$(mktemp)
trap finish EXIT
trap 'interrupted=yes; exit 130' INT TERM HUP
while :; do
  make_ready
  attempt
  [ "$status" != 0 ] || exit 0
  # A preempted worker makes the others fail before gcloud reports the slice as preempted.
  [ -z "$resume" ] || sleep "$poll"
  state=$(state_of tpu-vm)
  is_gone "$state" || break
  launched=''
  [ -n "$resume" ] || fail "$name is $state; --resume-on-preemption makes it again and goes on"
  note "$name is $state; it is made again"
done
[ -n "$status$launched" ] || fail "the command could not be started on all workers (their reasons are above)"
[ -n "$status" ] || fail "the workers do not tell how the command ended (their reasons are above)"
exit "$status"
