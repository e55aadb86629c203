#!/usr/bin/env bash
# Submits a command, with the code in the working folder, to this user's running cluster; follows it to its end.
#
#   slurm/submit.sh [--cluster=JOB] [--no-wait] COMMAND [...]
#   slurm/submit.sh [--cluster=JOB] --follow=ID
#
# Exit codes: the command's own; 1 if it was stopped or lost; 2 if there is no cluster, or more than one to choose from.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/common.sh
source "$here/common.sh"
read_site "$here"

usage='slurm/submit.sh [--cluster=JOB] [--no-wait | --follow=ID] COMMAND [...], in the checkout, whose code goes along'
job='' wait=1 follow=''
while [[ ${1:-} == -* ]]; do
    case $1 in
        --cluster=*) job=${1#*=} && shift ;;
        --no-wait) wait='' && shift ;;
        --follow=*) follow=${1#*=} && shift ;;
        --) shift && break ;;
        *) code=2 fail "$1: no such option; usage: $usage" ;;
    esac
done
if [[ -z $follow ]]; then
    [[ $# -gt 0 ]] || code=2 fail "no command; for example: slurm/submit.sh python jobs/train.py flickr8k --help"
    [[ -e jobs/train.py ]] || code=2 fail "there is no jobs/train.py here; usage: $usage"
fi

find_cluster "$job"
activate_environment
if [[ -z $follow ]]; then
    follow=caption_ray-$(date +%Y%m%d-%H%M%S)-$$
    # The code alone, and of that not what .gitignore names; without .git, the commit goes along for a sweep's records.
    commit=$(git describe --always --exclude='*' --abbrev=40 --dirty=+ 2> /dev/null || true)
    variables='"CAPTION_RAY_COMMIT": "'$commit'"'
    for switch in CAPTION_RAY_KERNEL CAPTION_RAY_GRAPHS; do
        [[ ! ${!switch:-} =~ ^[A-Za-z0-9]+$ ]] || variables+=', "'$switch'": "'${!switch}'"'
    done
    parts='{"env_vars": {'$variables'}, "excludes": ["/*", "!/.", "!/caption_ray", "!/jobs", "!/benchmarks", "!/*.py", "!/*.toml", "!/*.yaml"]}'
    submitted=$(ray job submit --no-wait --submission-id "$follow" --working-dir . --runtime-env-json "$parts" -- "$@" 2>&1) ||
        fail "$submitted"
    say "submitted to cluster $CAPTION_RAY_CLUSTER as $follow"
fi
[[ $wait ]] || exit 0
exec python "$here/follow_job.py" "$follow"
