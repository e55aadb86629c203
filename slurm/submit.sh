#!/usr/bin/env bash
# Submits a command, with the code in the working folder, to this user's running cluster; follows it to its end.
#
#   slurm/submit.sh [--cluster JOB] [--no-wait] COMMAND [...]
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
        --cluster) job=$2 && shift 2 ;;
        --no-wait) wait='' && shift ;;
        --) shift && break ;;
        *) code=2 fail "$1: no such option; usage: slurm/submit.sh [--cluster JOB] [--no-wait] COMMAND [...]" ;;
    esac
done
[[ $# -gt 0 ]] || code=2 fail "no command; for example: slurm/submit.sh python jobs/train.py flickr8k --help"

find_cluster "$job"
activate_environment
id=caption_ray-$(date +%Y%m%d-%H%M%S)-$$
# What .gitignore names stays behind as well.
excludes='{"excludes": ["/.git/", "/.ci/", "/.github/", "/tests/", "/benchmarks/", "/data/", "/features/", "/runs/", "*.log", "*.parquet", "*.pt", "*.safetensors"]}'
if [[ -z $wait ]]; then
    exec ray job submit --no-wait --submission-id "$id" --working-dir . --runtime-env-json "$excludes" -- "$@"
fi
ray job submit --submission-id "$id" --working-dir . --runtime-env-json "$excludes" -- "$@" || true
# Ray's own exit code tells success from failure alone.
answer=$(curl --silent --max-time 10 --header @<(printf 'Authorization: Bearer %s\n' "$(< "$RAY_AUTH_TOKEN_PATH")") \
    "$RAY_API_SERVER_ADDRESS/api/jobs/$id" || true)
status=$(sed -n 's/.*"status": *"\([A-Z]*\)".*/\1/p' <<< "$answer")
code=$(sed -n 's/.*"driver_exit_code": *\([0-9]*\).*/\1/p' <<< "$answer")
[[ $code ]] || fail "$id: ${status:-the cluster is gone}; no exit code"
exit "$code"
