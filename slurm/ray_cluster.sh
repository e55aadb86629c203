#!/usr/bin/env bash
# A Ray cluster inside a SLURM allocation: a Ray node on each of its nodes.
#
#   sbatch [OPTIONS] slurm/ray_cluster.sh                    stays up for slurm/submit.sh
#   sbatch [OPTIONS] slurm/ray_cluster.sh COMMAND [...]      runs COMMAND on the head node, and ends with its exit code
#   slurm/ray_cluster.sh [--NAME=VALUE ...] [COMMAND ...]    hands itself to sbatch with the site file's SBATCH_OPTIONS
#
# sbatch's own options go before the request below. All else is in the site file; see site.env.example and README.md.
#SBATCH --job-name=caption_ray
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=p100:2
#SBATCH --mem=16G
#SBATCH --time=20:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=caption_ray-%j.log
set -uo pipefail

asked_for='' # what signals have asked for: time (save, and go on later), stop (save), end (at once); see #SBATCH --signal
trap ': "${asked_for:=time}"' USR1
trap '[[ $asked_for == end ]] || asked_for=stop' USR2
trap 'asked_for=end' TERM INT

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if [[ -e $here/common.sh ]]; then # typed; a job runs SLURM's copy of this file
    # shellcheck source=slurm/common.sh
    source "$here/common.sh"
    read_site "$here"
    asked=()
    while [[ ${1:-} == -* ]]; do
        is_whole_option "$1" || {
            echo "$0: write the value of $1 without a space, as in --partition=work1 or -pwork1:" \
                "what follows a space is taken for the command to run" >&2
            exit 2
        }
        asked+=("$1")
        shift
    done
    # shellcheck disable=SC2086 # several options, apart by spaces
    exec sbatch ${SBATCH_OPTIONS:-} "${asked[@]}" "$here/ray_cluster.sh" "$@"
fi
# Its path, with spaces perhaps, and its arguments; under another name, up to the first space.
here=$(dirname "$(scontrol show job "$SLURM_JOB_ID" |
    sed -n -e 's/^ *Command=\(.*ray_cluster\.sh\).*/\1/p;t' -e 's/^ *Command=\([^ ]*\).*/\1/p')")
[[ -e $here/common.sh ]] || here=$SLURM_SUBMIT_DIR/slurm
[[ -e $here/common.sh ]] || { echo "$0: no common.sh in $here: submit it from the clone that it is in" >&2 && exit 2; }
# shellcheck source=slurm/common.sh
source "$here/common.sh"
read_site "$here"

WORK_IS_LEFT=75      # training's exit code after it was asked to stop, and has saved
MAX_FRUITLESS=5      # times in a row that the job is put back though it may not have got on
TIME_TO_GET_ON_S=120 # a shorter time to work in counts as such
TIME_TO_GO_S=40      # what is needed of the time limit to end everything and put the job back
start_timeout_s=${CAPTION_RAY_START_TIMEOUT_S:-300}
lost_node=${CAPTION_RAY_LOST_NODE:-fail}
case $lost_node in fail | requeue | continue) ;; *) fail "CAPTION_RAY_LOST_NODE=$lost_node: must be fail, requeue or continue" ;; esac
((${SLURM_NTASKS_PER_NODE:-1} == 1)) ||
    fail "--ntasks-per-node=$SLURM_NTASKS_PER_NODE: must be 1, Ray's node, which starts the processes; ask for --cpus-per-task"

activate_environment
export CLUSTER=$clusters/$SLURM_JOB_ID
token=$CLUSTER/token
fruitless=$CLUSTER.${SLURM_CLUSTER_NAME:-}.fruitless # how many times in a row, from one start of this job to the next
forget_ended_clusters
! is_elsewhere "$SLURM_JOB_ID" || fail "$CLUSTER is of SLURM cluster $(< "$CLUSTER/slurm_cluster"): submit this job again"
rm -rf "$CLUSTER" "$CLUSTER.env" # of this job before it was put back into the queue
(umask 077 && mkdir -p "$CLUSTER" && printf '%s\n' "${SLURM_CLUSTER_NAME:-}" > "$CLUSTER/slurm_cluster" &&
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$token") ||
    fail "cannot write to $CLUSTER; is the quota of the home folder used up?"

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token
unset RAY_AUTH_TOKEN RAY_ADDRESS RAY_API_SERVER_ADDRESS
export RAY_USAGE_STATS_ENABLED=0
export RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S=2 # 30 by default, when SLURM kills what has not ended
export RAY_JOB_STOP_WAIT_TIME_S=120            # `ray job stop` gives a training run time to save
export RAY_memory_monitor_refresh_ms=0         # looks at the whole machine's memory, which others fill too
export CAPTION_RAY_STOP_FILE=$CLUSTER/stop     # training that finds this file saves and stops
ulimit -n "$(ulimit -Hn)"
# Steps take these for their own options, where they would contradict, or ask for all nodes' GPUs on one.
unset SLURM_EXPORT_ENV SLURM_GPUS SLURM_GPUS_PER_TASK
[[ -z ${SLURM_MEM_PER_NODE:-} ]] || unset SLURM_MEM_PER_CPU SLURM_MEM_PER_GPU

mapfile -t nodes < <(scontrol show hostnames)
num_workers=$((${#nodes[@]} - 1))
num_expected=${#nodes[@]} # Ray nodes
ip='' gcs='' dashboard='' tmp='' # of the head, once it has started
head_pid='' workers_pid='' command_pid=''

step() { # NODES srun options ... -- node.sh's arguments: start Ray on nodes
    local number=$1 options=()
    shift
    while [[ $1 != -- ]]; do
        options+=("$1")
        shift
    done
    shift
    local kill=1
    [[ $lost_node != continue ]] || kill=0
    exec srun --export=ALL --nodes="$number" --ntasks="$number" --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --cpu-bind=none \
        --kill-on-bad-exit="$kill" --wait=0 --no-kill --mpi=none --quiet "${options[@]}" bash "$here/node.sh" "$@"
}

is_up() { [[ -n $1 ]] && kill -0 "$1" 2> /dev/null; }
nap() { sleep "$1" & wait $! 2> /dev/null; } # unlike `sleep` alone, a signal is answered at once

# Ask the dashboard. The token goes in by a file that only this process has: command lines are for all to read.
ask() { curl --noproxy '*' --silent --fail --max-time 5 --header @<(printf 'Authorization: Bearer %s\n' "$(< "$token")") "http://$ip:$dashboard$1"; }
# Print how many Ray nodes are alive; fails where the dashboard does not answer.
num_alive() {
    local summary
    summary=$(ask '/nodes?view=summary') && grep -o '"state": "ALIVE"' <<< "$summary" | wc -l
}
no_job_is_left() {
    local jobs
    jobs=$(ask /api/jobs/) && ! grep -qE '"status": *"(PENDING|RUNNING)"' <<< "$jobs"
}

give_up() {
    say "$*"
    for log in "$CLUSTER"/*.log; do
        [[ ! -s $log ]] || { echo "--- the end of ${log##*/}:" && tail -n 20 "$log"; }
    done
    leave 1
}

# Wait up to so many seconds until none of some processes is left.
wait_for_end() {
    local deadline=$((SECONDS + $1)) pid
    shift
    for pid in "$@"; do
        while is_up "$pid" && ((SECONDS < deadline)); do nap 0.2; done
    done
}

# End every process of this cluster on every node, and remove what it wrote.
clean_up() {
    local pid
    trap '' TERM INT USR1 USR2
    rm -f "$CLUSTER.env" "$token"
    # By srun to node.sh, which ends Ray and tidies up. TERM would have srun kill it before it could.
    for pid in $head_pid $workers_pid; do kill -USR2 "$pid" 2> /dev/null; done
    wait_for_end 20 "$head_pid" "$workers_pid"
    # Only now: training takes this for a request to save, which it cannot do any more, and a driver without Ray waits.
    for pid in $command_pid; do kill -TERM -- "-$pid" 2> /dev/null && wait_for_end 2 "$pid"; done
    for pid in ${command_pid:+"-$command_pid"} $workers_pid $head_pid; do kill -KILL -- "$pid" 2> /dev/null; done
    timeout 15 srun --export=ALL --overlap --no-kill --quiet bash "$here/node.sh" sweep > /dev/null 2>&1
    rm -rf "$CLUSTER"
}

leave() { # EXIT CODE
    clean_up
    rm -f "$fruitless"
    exit "$1"
}

# Put the job back into the queue, where it goes on from what has been saved.
requeue() {
    say "putting the job back into the queue: $*"
    clean_up
    trap - TERM
    scontrol requeue "$SLURM_JOB_ID" && nap 600 # SLURM ends this script
    rm -f "$fruitless"
    exit "$WORK_IS_LEFT"
}

# The same, where it may not have got on: not for ever.
requeue_fruitless() {
    local times
    times=$(($(cat "$fruitless" 2> /dev/null || echo 0) + 1))
    ((times <= MAX_FRUITLESS)) || give_up "$*; put back $MAX_FRUITLESS times in a row: not again"
    echo "$times" > "$fruitless"
    requeue "$* ($times of at most $MAX_FRUITLESS times in a row)"
}

lost_workers() { # HOW MANY NODES ARE LEFT
    case $lost_node in
        continue) say "lost a worker node; going on without, on $1 of ${#nodes[@]}" ;;
        requeue) requeue_fruitless "lost a worker node" ;;
        *) give_up "lost a worker node" ;;
    esac
    num_expected=$1
}

seconds_left() { # of the job's time limit; very many where it has none
    local end
    end=$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%e)
    end=$(date +%s --date="${end:-none}" 2> /dev/null) || end=99999999999
    echo $((end - $(date +%s)))
}

# Start the head until it has its ports: another may take one between finding it free and listening there.
start_head() {
    local attempt deadline=$((SECONDS + start_timeout_s))
    for attempt in 1 2 3; do
        rm -f "$CLUSTER/head"
        step 1 --nodelist="${nodes[0]}" -- head > "$CLUSTER/head.log" 2>&1 &
        head_pid=$!
        while is_up "$head_pid"; do
            [[ $asked_for != end ]] || return
            ((SECONDS < deadline)) || give_up "the head on ${nodes[0]} did not answer within $start_timeout_s s"
            if [[ -s $CLUSTER/head ]]; then
                # shellcheck source=/dev/null
                source "$CLUSTER/head"
                ask /api/version > /dev/null && return
            fi
            nap 0.3
        done
        say "the head on ${nodes[0]} ended at once (attempt $attempt)"
    done
    give_up "the head does not start"
}

start_workers() {
    local deadline=$((SECONDS + start_timeout_s)) num
    if ((num_workers > 0)); then
        step "$num_workers" --exclude="${nodes[0]}" -- worker "$ip:$gcs" > "$CLUSTER/workers.log" 2>&1 &
        workers_pid=$!
    fi
    until num=$(num_alive) && ((num > num_workers)); do
        [[ $asked_for != end ]] || return
        is_up "$head_pid" || give_up "the head on ${nodes[0]} ended"
        ((num_workers == 0)) || is_up "$workers_pid" || give_up "a worker node ended"
        ((SECONDS < deadline)) || give_up "${num:-0} of ${#nodes[@]} nodes have joined within $start_timeout_s s"
        nap 0.3
    done
}

announce() {
    local tunnel example
    tunnel="ssh -N -L 8265:$ip:$dashboard ${CAPTION_RAY_LOGIN:-$USER@${SLURM_SUBMIT_HOST:-login}}"
    example="slurm/submit.sh${1:+ --cluster=$SLURM_JOB_ID} python jobs/train.py flickr8k --data DATA --storage RUNS --name first"
    (umask 077 && cat > "$CLUSTER.env.partial") << ENV
# dashboard: $tunnel
# submit:    $example
CAPTION_RAY_CLUSTER=$SLURM_JOB_ID
CAPTION_RAY_COMMAND=${1:-}
RAY_ADDRESS=$ip:$gcs
RAY_API_SERVER_ADDRESS=http://$ip:$dashboard
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN_PATH=$(printf %q "$token")
no_proxy=$ip\${no_proxy:+,\$no_proxy}
ENV
    mv "$CLUSTER.env.partial" "$CLUSTER.env"
    say "Ray is up on ${#nodes[@]} node(s): ${nodes[*]}"
    cat << TEXT
  address      http://$ip:$dashboard (jobs, dashboard), $ip:$gcs (drivers)
  token file   $token
  written to   $CLUSTER.env
  dashboard    $tunnel
               then http://localhost:8265, which asks for what is in the token file
  submit       $example
  end          slurm/stop.sh $SLURM_JOB_ID
TEXT
}

say "job $SLURM_JOB_ID, restarts: ${SLURM_RESTART_COUNT:-0}, nodes: ${nodes[*]}"
[[ $asked_for == end ]] || start_head
[[ $asked_for == end ]] || start_workers
[[ $asked_for == end ]] || announce "${1:+1}"

if [[ $# -gt 0 && $asked_for == time ]]; then
    give_up "the time was nearly up before the work had begun: ask for more --time, of which --signal takes five minutes"
elif [[ $# -gt 0 && $asked_for == stop ]]; then
    say "asked to stop before the work had begun"
    leave "$WORK_IS_LEFT"
elif [[ $# -gt 0 && -z $asked_for ]]; then
    say "running: $*"
    surroundings=(RAY_ADDRESS="$ip:$gcs" no_proxy="$ip${no_proxy:+,$no_proxy}" TMPDIR="$tmp")
    env "${surroundings[@]}" setsid "$@" & # a group of its own, to be ended as a whole
    command_pid=$!
fi

started=$SECONDS looked=$SECONDS told=''
while true; do
    # SLURM takes the nodes back for another job: that is told to node.sh alone.
    [[ -n $asked_for || ! -e $CLUSTER/preempted ]] || asked_for='time'
    if [[ $asked_for == end ]]; then
        say "asked to end"
        leave 143
    fi
    if [[ -n $command_pid ]] && ! is_up "$command_pid"; then
        wait "$command_pid"
        code=$?
        say "the command ended with exit code $code"
        [[ $code == "$WORK_IS_LEFT" && $asked_for == time ]] || leave "$code"
        ((told - started >= TIME_TO_GET_ON_S)) || requeue_fruitless "the time is up and work is left"
        rm -f "$fruitless"
        requeue "the time is up and work is left"
    fi
    if ! is_up "$head_pid"; then give_up "lost the head on ${nodes[0]}"; fi
    if [[ -n $workers_pid ]] && ! is_up "$workers_pid"; then
        workers_pid=''
        ((num_expected == 1)) || lost_workers 1
    fi
    if ((SECONDS >= looked + 20)); then # `ray start` stays although Ray's own process on its node has ended
        looked=$SECONDS
        ! num=$(num_alive) || ((num >= num_expected)) || lost_workers "$num"
    fi
    if [[ -n $asked_for && -z $told ]]; then
        told=$SECONDS
        touch "$CLUSTER/stop"
        if [[ $asked_for == time ]]; then say "the time is nearly up"; else say "asked to stop"; fi
        say "training is told to save and stop"
        left=$(seconds_left)
    fi
    # A cluster without a command has nothing to go on with: it would wait for work in vain.
    if [[ $asked_for == time && -n $command_pid && -e $CLUSTER/stop.heeded ]] && ((SECONDS - told > left - TIME_TO_GO_S)); then
        requeue_fruitless "training has not saved in time, and goes on from its last epoch"
    fi
    if [[ -n $told && -z $command_pid ]] && no_job_is_left; then
        say "no job is running any more"
        nap 5 # whoever follows one still asks how it ended
        leave 0
    fi
    nap 1
done
