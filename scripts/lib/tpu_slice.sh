# shellcheck shell=bash disable=SC2034,SC2154  # variables are shared with the script that sources this
# Makes, awaits, inspects and deletes a slice; run_tpu_pod.sh sources this file.

create_slice() {
  local flags=("${place[@]}" "--accelerator-type=$type" ${spot:+--spot} ${with_create[@]+"${with_create[@]}"})
  if [ -n "$queued" ]; then
    run gcloud compute tpus queued-resources create "$name" --node-id="$name" --runtime-version="$version" "${flags[@]}" ||
      fail "the slice could not be asked for (gcloud's reason is above)"
  else
    run gcloud compute tpus tpu-vm create "$name" --version="$version" "${flags[@]}" ||
      fail "the slice could not be made (gcloud's reason is above); if there is no room, --queued waits for it"
  fi
}

delete_slice() { run "${delete_command[@]}"; }

# state_of KIND: prints the state of the slice (tpu-vm) or of its request (queued-resources); NONE if there is none.
state_of() {
  local format=state state
  [ "$1" = tpu-vm ] || format=state.state
  if state=$(gcloud compute tpus "$1" describe "$name" "${place[@]}" --format="value($format)" 2>"$scratch"); then
    echo "${state:-UNKNOWN}"
  elif grep -q NOT_FOUND "$scratch"; then
    echo NONE
  else
    cat "$scratch" >&2
    fail "the state of $name cannot be read (gcloud's reason is above)"
  fi
}

is_gone() { case $1 in PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | NONE) ;; *) return 1 ;; esac }

# await KIND STATE: waits for the state; returns 1 if the slice was preempted meanwhile.
await() {
  local state last='' deadline=$((SECONDS + wait * 60)) describe
  describe=$(quoted gcloud compute tpus "$1" describe "$name" "${place[@]}")
  echo "+ $describe  # until it is $2" >&2
  while :; do
    state=$(state_of "$1") || state=out\ of\ sight
    [ "$state" = "$last" ] || note "$(date +%T) $name is $state"
    last=$state
    case $state in
      "$2") return 0 ;;
      FAILED) fail "the request for $name failed; why: $describe" ;;
      SUSPENDING | SUSPENDED) return 1 ;;
    esac
    if is_gone "$state"; then return 1; fi
    [ "$SECONDS" -lt "$deadline" ] || fail "$name is still $state after $wait minutes (--wait=MINUTES)"
    sleep "$poll"
  done
}

# Waits until the slice is ready, an existing or a new one.
make_ready() {
  local state request=NONE
  while :; do
    state=$(state_of tpu-vm)
    [ -z "$queued" ] || request=$(state_of queued-resources)
    [ "$state $request" = "NONE NONE" ] || there=yes
    [ "$state" != READY ] || return 0
    case $state,$request in STOPPING* | DELETING* | *SUSPENDING | *DELETING) sleep "$poll" && continue ;; esac
    case $request in WAITING_FOR_RESOURCES | CREATING | ACCEPTED | PROVISIONING) state=WAITING ;; esac
    if is_gone "$state"; then
      [ -n "$create" ] || fail "there is no slice $name that is ready ($state): --create makes one"
      if [ -n "$there" ]; then delete_slice || fail "what is left of $name could not be deleted"; fi
      there=''
      create_slice
      there=yes made=yes
    fi
    if { [ -z "$queued" ] || await queued-resources ACTIVE; } && await tpu-vm READY; then return 0; fi
    [ -n "$resume" ] || fail "$name was taken away before it was ready"
  done
}
