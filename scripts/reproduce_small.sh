#!/usr/bin/env bash
# Measures the paper's claims in small, on SmolLM2-135M-Instruct and two CPU cores: what trained numbers buy.
# Tables and figures are in runs/parameters.
#
#   bash scripts/reproduce_small.sh [DATA_FOLDER]            # over an hour; it says how long first
#   bash scripts/reproduce_small.sh [DATA_FOLDER] --large    # for an accelerator; --help tells of further arguments
#
# It runs aligner_jax.studies.parameters, see docs/studies.md. Without DATA_FOLDER the questions are the quickstart's; the
# folder and relative paths of arguments are as seen from where it is started and from the repository, respectively. If
# interrupted and started again, it goes on.
set -euo pipefail

data=()
case ${1:--} in
  -*) ;;
  # Before environment.sh changes the folder.
  /*) data=("$1") && shift ;;
  *) data=("$PWD/$1") && shift ;;
esac

more_requirements=scripts/lib/study_requirements.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/lib/environment.sh"
source scripts/lib/smollm2.sh

exec "$python" -m aligner_jax.studies.parameters "${data[@]+"${data[@]}"}" "$@"
