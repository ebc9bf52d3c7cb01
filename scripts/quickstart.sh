#!/usr/bin/env bash
# Trains an Aligner for SmolLM2-135M-Instruct on two CPU cores and shows what it changed.
#
#   bash scripts/quickstart.sh                                   # everything, in a few minutes
#   bash scripts/quickstart.sh --config.adapter.num_tokens=10    # arguments go to aligner_jax.train
#
# If interrupted and started again, it resumes. Paths in arguments are relative to the repository's root.
set -euo pipefail
requirements=scripts/lib/core_requirements.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/lib/environment.sh"
source scripts/lib/smollm2.sh

"$python" -m aligner_jax.train --config=configs/quickstart.py "$@"

workdir=runs/quickstart
while [ $# -gt 0 ]; do
  case $1 in
    --workdir=*) workdir=${1#*=} ;;
    --workdir) workdir=${2:-} ;;
  esac
  shift
done
echo
echo "Ask it something, or train it another way:"
[ "$started_in" = "$PWD" ] || printf '  cd %q\n' "$PWD"
printf '  %q -m aligner_jax.generate --base=%q --adapter=%q --prompt="Why is the sky blue?"\n' \
  "$python" "$model" "$workdir/adapter.safetensors"
printf '  %q -m aligner_jax.train --config=configs/quickstart.py --config.adapter.num_tokens=10 --workdir=runs/ten_tokens\n' "$python"
