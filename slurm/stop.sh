#!/usr/bin/env bash
# Ends this user's running cluster; training that runs on it saves first, and goes on when it is submitted again.
#
#   slurm/stop.sh [JOB]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/common.sh
source "$here/common.sh"

find_cluster "${1:-}"
job=$CAPTION_RAY_CLUSTER
scancel --batch --signal=USR2 "$job"
echo "cluster $job: told to stop"
for _ in {1..300}; do # by files, since SLURM itself is not to be asked in a loop
    [[ -e $clusters/$job ]] || exit 0
    sleep 1
done
fail "cluster $job is still at work after five minutes: see its log, or end it at once by scancel $job"
