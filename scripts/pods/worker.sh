#!/usr/bin/env bash
# Runs a command in a pod of a TPU slice, once the other hosts of the slice can be found by name.
#
#   bash worker.sh COMMAND…
#
# The processes of a run give up when the others have not joined them after five minutes, and status 1 ends the whole
# job. Slices come up, and their hosts pull images, at different times. So this waits for the names that GKE puts into
# TPU_WORKER_HOSTNAMES, the hosts of this slice, and for those in FIRST_HOSTS, the first host of every slice. It ends
# with status 75, after which the job is begun again, if they cannot be found within WAIT_FOR_HOSTS seconds.
#
# The command takes the place of this shell, so that it gets the signals of a preemption.
set -u

# The TPU driver locks memory; GKE's pods may lock little unless they raise the limit, or are privileged.
ulimit -l 68719476736 2>/dev/null || true

deadline=$((SECONDS + ${WAIT_FOR_HOSTS:-1800}))
IFS=, read -r -a hosts <<<"${TPU_WORKER_HOSTNAMES:-},${FIRST_HOSTS:-}"
for host in "${hosts[@]}"; do
  [ -n "$host" ] || continue
  until getent hosts "$host" >/dev/null; do
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "error: $(hostname) cannot find $host, one of the hosts of its slices" >&2
      exit 75
    fi
    sleep 2
  done
done

exec "$@"
