# shellcheck shell=bash
# Scripts for the workers of a slice, as text for their shells; run_tpu_pod.sh sources this file. gcloud repeats a request
# whose connection was lost, so a script can run twice. The command inherits the lock on file descriptor 9, which shows
# that it is running. It has its own process group, so that all of it can be killed.

# Quotes words for any shell: a worker's login shell may be another one.
quoted() {
  local word words=() quote=\'\"\'\"\'
  for word; do
    case $word in
      '' | *[!A-Za-z0-9_./:=@%+,-]*) word="'${word//\'/$quote}'" ;;
    esac
    words+=("$word")
  done
  printf '%s' "${words[*]}"
}

# set_up_script URL REVISION: checks out that revision, and installs a Python and the environment.
set_up_script() {
  local url revision
  url=$(quoted "$1") revision=$(quoted "$2")
  cat <<EOF
set -e
mkdir -p ~/aligner_jax_run
if ! flock -n ~/aligner_jax_run/lock true; then echo "\$(hostname): a command is running, so the code stays as it is"; exit 0; fi
sudo -n sh -c 'echo always >/sys/kernel/mm/transparent_hugepage/enabled' 2>/dev/null || true
export GIT_TERMINAL_PROMPT=0
[ -d ~/aligner_jax/.git ] || git clone --quiet --no-checkout $url ~/aligner_jax
cd ~/aligner_jax
git remote set-url origin $url
git fetch --quiet --tags --force origin '+refs/heads/*:refs/remotes/origin/*'
commit=\$(git rev-parse --verify --quiet origin/$revision^{commit} || git rev-parse --verify --quiet $revision^{commit}) ||
  { echo "error: \$(hostname) finds no revision" $revision in $url >&2; exit 1; }
git checkout --quiet --detach "\$commit"
if [ ! -x .venv/bin/python ] && ! python3.12 -c 'import ensurepip, venv' 2>/dev/null; then
  PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.12
  export PYTHON="\$(python3 -m uv python find --managed-python 3.12)"
fi
bash -c 'set -euo pipefail; source scripts/lib/environment.sh'
EOF
}

# launch_script ID WORD…: starts the command unless this ID has started it before or it is already running.
launch_script() {
  local id text
  id=$(quoted "$1")
  shift
  text=$(quoted "$(quoted "$@")")
  cat <<EOF
set -e
cd ~/aligner_jax_run
if [ "\$(cat id 2>/dev/null)" = $id ]; then exit 0; fi
exec 9>lock
if ! flock -n 9; then
  if [ "\$(cat command)" = $text ]; then echo "\$(hostname): the command is running already"; exit 0; fi
  echo "error: \$(hostname) is still running another command, which kill -- -\$(cat pid) ends there" >&2
  exit 1
fi
rm -f status
printf '%s\n' $text >command
cd ~/aligner_jax
nohup setsid bash -c '
  source .venv/bin/activate
  PYTHONUNBUFFERED=1 bash ~/aligner_jax_run/command
  echo \$? >~/aligner_jax_run/status' </dev/null >~/aligner_jax_run/log 2>&1 &
echo \$! >~/aligner_jax_run/pid
echo $id >~/aligner_jax_run/id
EOF
}

# Prints the output from now on, until the command ends.
follow_script() {
  cat <<'EOF'
cd ~/aligner_jax_run && tail -n 50 -f -s 0.3 --pid="$(cat pid)" log
EOF
}

# Prints a line "ended HOST STATUS". If one process has ended, JAX ends the others within two minutes.
collect_script() {
  cat <<'EOF'
cd ~/aligner_jax_run || exit
flock -w 150 lock true || kill -KILL -- -"$(cat pid)"
status=$(cat status 2>/dev/null || echo 137)
[ "$status" = 0 ] || tail -n 20 log | sed "s/^/$(hostname): /" >&2
echo "ended $(hostname) $status"
EOF
}
