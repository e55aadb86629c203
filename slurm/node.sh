#!/usr/bin/env bash
# One Ray node on one SLURM node, in the foreground, as long as it lives; ray_cluster.sh starts it by srun.
#
#   node.sh head | worker ADDRESS | sweep
#
# `head` writes where it listens to $CLUSTER/head. `sweep` removes what a node that was killed left behind.
set -uo pipefail
role=$1

tmp=${CAPTION_RAY_TMP:-${TMPDIR:-/tmp}}
# Ray puts sockets below its folder, whose paths may have 107 bytes; 66 of them are its own.
if ((${#tmp} > 24)); then
    [[ -z ${CAPTION_RAY_TMP:-} ]] || {
        echo "CAPTION_RAY_TMP=$tmp: longer than the 24 bytes that leave room for Ray's sockets; name a shorter one" >&2
        exit 1
    }
    tmp=/tmp
fi
own=$tmp/cr-$SLURM_JOB_ID
if [[ $role == sweep ]]; then
    rm -rf "$own"
    exit
fi
rm -rf "$own" # of this job before it was put back into the queue
mkdir -m 700 "$own" || {
    echo "$(hostname): cannot make $own; name another node-local folder in CAPTION_RAY_TMP" >&2
    exit 1
}
export TMPDIR=$own

# Ray sees the whole machine; this node's part of the allocation is what it may use.
num_cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
if [[ -n ${SLURM_MEM_PER_NODE:-} ]] && ((SLURM_MEM_PER_NODE > 0)); then
    memory_mb=$SLURM_MEM_PER_NODE
elif [[ -n ${SLURM_MEM_PER_CPU:-} ]]; then
    memory_mb=$((SLURM_MEM_PER_CPU * num_cpus))
elif [[ -n ${SLURM_MEM_PER_GPU:-} ]]; then
    memory_mb=$((SLURM_MEM_PER_GPU * ${SLURM_GPUS_ON_NODE:-1}))
else
    memory_mb=$(($(awk '/^MemTotal/ {print $2}' /proc/meminfo) / 1024)) # the whole node's
fi
# The object store lies in shared memory and counts as the job's too. Ray refuses one larger than /dev/shm.
store_mb=$((memory_mb * 3 / 10))
shm_mb=$(($(df --output=avail -k /dev/shm | tail -n 1) * 9 / 10 / 1024))
((store_mb <= shm_mb)) || store_mb=$shm_mb
options=(
    --num-cpus="$num_cpus"
    --num-gpus="${SLURM_GPUS_ON_NODE:-0}"
    --memory=$(((memory_mb - store_mb) * 1024 * 1024))
    --object-store-memory=$((store_mb * 1024 * 1024))
    # Any free port, for nodes may be shared: by default each node listens on some of the same ones.
    --dashboard-agent-listen-port=0 --min-worker-port=0 --max-worker-port=0
    --temp-dir="$own/ray" --disable-usage-stats --block
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
    printf 'ip=%s\ngcs=%s\ndashboard=%s\n' "$ip" "$gcs" "$dashboard" > "$CLUSTER/head.partial"
    mv "$CLUSTER/head.partial" "$CLUSTER/head"
else
    options+=(--address="$2")
fi

ray start "${options[@]}" &
ray=$!
trap 'kill -TERM "$ray" 2> /dev/null' TERM INT
# A trap ends `wait`; Ray then takes a moment to end its processes.
while kill -0 "$ray" 2> /dev/null; do wait "$ray"; done
wait "$ray"
code=$?
echo "$(hostname): Ray ended with exit code $code"
rm -rf "$own"
exit "$code"
