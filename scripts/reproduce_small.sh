#!/usr/bin/env bash
# Reproduces the paper's two claims in small, on SmolLM2-135M-Instruct and two CPU cores: tables and figures in runs/reproduce.
#
#   bash scripts/reproduce_small.sh [DATA_FOLDER]            # 60 to 90 minutes, which it says first
#   bash scripts/reproduce_small.sh [DATA_FOLDER] --large    # hours; --help tells of further arguments
#
# DATA_FOLDER (default data) holds sft/alpaca_random_9k.json and reasoning/gsm8k/train.jsonl, unless --alpaca=FILE and
# --gsm8k=FILE name them; files and folders after DATA_FOLDER are relative to the repository. If interrupted and started
# again, it resumes.
set -euo pipefail

data=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)/data
case ${1:--} in
  -*) ;;
  # Before environment.sh changes the folder.
  /*) data=$1 && shift ;;
  *) data=$PWD/$1 && shift ;;
esac
case " $* " in
  *" --help "* | *" -h "*) ;;
  *)
    for named in alpaca=sft/alpaca_random_9k.json gsm8k=reasoning/gsm8k/train.jsonl; do
      file=${named#*=}
      case " $*" in *" --${named%%=*}="* | *" --${named%%=*} "*) continue ;; esac
      [ -e "$data/$file" ] && continue
      echo "error: there is no $data/$file: name a folder that holds sft/alpaca_random_9k.json (any file in Alpaca's" \
        "format under that name, as alpaca_data.json of github.com/tatsu-lab/stanford_alpaca) and" \
        "reasoning/gsm8k/train.jsonl (grade_school_math/data/train.jsonl of github.com/openai/grade-school-math)" >&2
      exit 1
    done
    ;;
esac

source "$(dirname -- "${BASH_SOURCE[0]}")/lib/environment.sh"
source scripts/lib/smollm2.sh

exec "$python" -m aligner_jax.studies.reproduce_small "$data" "$@"
