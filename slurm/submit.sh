#!/usr/bin/env bash
# Submits a command, with the code in the working folder, to this user's running cluster; follows it to its end.
#
#   slurm/submit.sh [--cluster=JOB] [--no-wait] COMMAND [...]
#
# Exit codes: the command's own; 1 if it was stopped or lost; 2 if there is no cluster, or more than one to choose from.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/common.sh
source "$here/common.sh"
read_site "$here"

job='' wait=1
while [[ ${1:-} == -* ]]; do
    case $1 in
        --cluster=*) job=${1#*=} && shift ;;
        --no-wait) wait='' && shift ;;
        --) shift && break ;;
        *) code=2 fail "$1: no such option; usage: slurm/submit.sh [--cluster=JOB] [--no-wait] COMMAND [...]" ;;
    esac
done
[[ $# -gt 0 ]] || code=2 fail "no command; for example: slurm/submit.sh python jobs/train.py flickr8k --help"

find_cluster "$job"
activate_environment
id=caption_ray-$(date +%Y%m%d-%H%M%S)-$$
# What .gitignore names stays behind as well.
commit=$(git describe --always --exclude='*' --abbrev=40 --dirty=+ 2> /dev/null || true)
excludes='{"env_vars": {"CAPTION_RAY_COMMIT": "'$commit'"}, "excludes": ["/.git/", "/.ci/", "/.github/", "/tests/", "/benchmarks/", "/data/", "/features/", "/runs/", "*.log", "*.parquet", "*.pt", "*.safetensors"]}'
submitted=$(ray job submit --no-wait --submission-id "$id" --working-dir . --runtime-env-json "$excludes" -- "$@" 2>&1) ||
    fail "$submitted"
say "submitted to cluster $CAPTION_RAY_CLUSTER as $id"
[[ $wait ]] || exit 0
exec python "$here/follow_job.py" "$id"
