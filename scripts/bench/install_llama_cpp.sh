#!/usr/bin/env bash
# Builds llama-cpp-python from its source distribution, in an environment of its own; a quarter of an hour on two cores.
#
#   bash scripts/bench/install_llama_cpp.sh ENV
#   LLAMA_PYTHON=ENV/bin/python python -m scripts.bench.llama_cpp
set -euo pipefail

env=${1:?usage: bash scripts/bench/install_llama_cpp.sh ENV}
[ -x "$env/bin/python" ] || python3 -m venv "$env"
"$env/bin/pip" install --quiet scikit-build-core cmake ninja numpy typing_extensions diskcache jinja2
CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-2} CMAKE_ARGS="-DLLAMA_CURL=OFF -DLLAVA_BUILD=OFF" \
  "$env/bin/pip" install --no-build-isolation --no-binary llama-cpp-python llama-cpp-python==0.3.36
"$env/bin/python" -c 'import llama_cpp; print("llama-cpp-python", llama_cpp.__version__)'
