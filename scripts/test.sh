#!/usr/bin/env bash
# Runs format, lint, type checks and tests, and stops at the first failure. Makes the environment if there is none.
#
#   bash scripts/test.sh                                     # everything
#   bash scripts/test.sh tests/model/rope_test.py -k llama3  # arguments go to pytest
set -euo pipefail
more_requirements=scripts/lib/study_requirements.txt
source "$(dirname -- "${BASH_SOURCE[0]}")/lib/environment.sh"

# Caches stay in the repository, and tests need no accelerator.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$PWD/.pytest_cache/xla}
export MPLCONFIGDIR=$PWD/.pytest_cache/matplotlib

stage() {
  printf '\n── %s\n' "$1"
  shift
  "$@"
}

stage "format" "$python" -m ruff format --check
stage "lint" "$python" -m ruff check
stage "types" "$python" -m basedpyright --threads 2 --pythonpath "$python"
stage "tests" "$python" -m pytest -n 2 --dist worksteal "$@"
