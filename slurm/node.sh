#!/usr/bin/env bash
# One Ray node on one SLURM node, in the foreground, as long as it lives; ray_cluster.sh starts it by srun.
#
#   node.sh head | worker ADDRESS | sweep
#
# `head` writes where it listens, and its temporary folder, to $CLUSTER/head. `sweep` removes what a node that was killed
# left behind.
set -uo pipefail
role=$1

disk=${CAPTION_RAY_TMP:-${TMPDIR:-/tmp}}
own=$disk/cr-$SLURM_JOB_ID-$SLURMD_NODENAME # $TMPDIR may be one that all nodes see
# Ray puts sockets below its folder, whose paths may have 107 bytes; 66 of them are its own.
short=$own
((${#own} <= 36)) || short=/tmp/cr-$SLURM_JOB_ID
tidy_up() { rm -rf "$own" "$short"; }
if [[ $role == sweep ]]; then
    tidy_up
    rm -rf "$disk/cr-$SLURM_JOB_ID"-* # where all nodes see it, what those that are gone have left
    exit
fi

is_over='' give_up_at=''
trap 'is_over=1' USR2 # by ray_cluster.sh
# By SLURM. Where it takes the nodes back for another job, it tells nobody else, and training is to save before Ray ends.
# Where the job is over, ray_cluster.sh knows too and sends USR2 at once, unless it has been killed.
trap '[[ $role != head ]] || touch "$CLUSTER/preempted"; give_up_at=$((SECONDS + 25))' TERM INT
trap tidy_up EXIT
tidy_up # of this job before it was put back into the queue
if ! mkdir -m 700 "$own" || { [[ $short != "$own" ]] && ! mkdir -m 700 "$short"; }; then
    echo "$(hostname): cannot make $own; name another node-local folder in CAPTION_RAY_TMP" >&2
    exit 1
fi
export TMPDIR=$own

# Ray sees the whole machine; this node's part of the allocation is what it may use.
memory_mb=${SLURM_MEM_PER_NODE:-0}
if ((memory_mb == 0)); then memory_mb=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024)); fi # the whole node's
# The object store lies in shared memory and counts as the job's too. Ray refuses one larger than /dev/shm.
store_mb=$((memory_mb * 3 / 10))
shm_mb=$(($(df --output=avail -k /dev/shm | tail -n 1) * 9 / 10 / 1024))
((store_mb <= shm_mb)) || store_mb=$shm_mb
options=(
    --num-cpus="${SLURM_CPUS_PER_TASK:-1}"
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --memory=$(((memory_mb - store_mb) * 1024 * 1024))
    --object-store-memory=$((store_mb * 1024 * 1024))
    # Any free port, for nodes may be shared: by default each node listens on some of the same ones.
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0
    --temp-dir="$short/ray" --object-spilling-directory="$own/spilled" --disable-usage-stats --block
)

# Print this node's address: the first that its name stands for and other nodes can reach.
address() {
    { getent ahostsv4 "$(hostname)" | awk '{print $1}' && hostname -I | tr ' ' '\n'; } |
        awk '/^[0-9.]+$/ && !/^127\./ {print; exit}'
}

# Print free ports, as many as asked for.
free_ports() {
    python - "$1" << 'PYTHON'
import random, socket, sys

with_sockets = []
while len(with_sockets) < int(sys.argv[1]):  # each is held until all are found, so no two are the same
    listener = socket.socket()
    try:
        listener.bind(("", random.randint(20000, 31999)))  # below those that the system hands out by itself
    except OSError:
        listener.close()
    else:
        with_sockets.append(listener)
print(*(listener.getsockname()[1] for listener in with_sockets))
PYTHON
}

if [[ $role == head ]]; then
    ip=$(address)
    [[ -n $ip ]] || {
        echo "$(hostname): no IPv4 address that other nodes can reach" >&2
        exit 1
    }
    read -r gcs dashboard client DASHBOARD_METRIC_PORT AUTOSCALER_METRIC_PORT < <(free_ports 5)
    export DASHBOARD_METRIC_PORT AUTOSCALER_METRIC_PORT
    options+=(--head --node-ip-address="$ip" --port="$gcs" --ray-client-server-port="$client")
    options+=(--include-dashboard=true --dashboard-host="$ip" --dashboard-port="$dashboard")
    printf 'ip=%s\ngcs=%s\ndashboard=%s\ntmp=%q\n' "$ip" "$gcs" "$dashboard" "$own" > "$CLUSTER/head.partial"
    mv "$CLUSTER/head.partial" "$CLUSTER/head"
else
    options+=(--address="$2")
fi

for attempt in 1 2 3; do
    ray start "${options[@]}" &
    ray=$!
    while kill -0 "$ray" 2> /dev/null; do
        [[ -z $give_up_at || -e $CLUSTER/stop ]] || ((SECONDS < give_up_at)) || is_over=1
        if [[ $is_over == 1 ]]; then
            kill -TERM "$ray"
            is_over=told
        fi
        sleep 1 & # a signal ends the wait
        wait $!
    done
    wait "$ray"
    code=$?
    echo "$(hostname): Ray ended with exit code $code"
    # Ray gives a node 30 s to start, which may not do where the file system is slow. The head tries other ports, too.
    [[ $role == worker && -z $is_over && ! -e $CLUSTER.env ]] || break
    echo "$(hostname): it did not start (attempt $attempt)"
done
exit "$code"
