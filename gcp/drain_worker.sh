#!/usr/bin/env bash
# What a worker's pod does before it ends: `drain-worker REPLICAS BALANCER`, in seconds.
#
# It tells Ray that this node will be gone, so that Serve starts its replicas elsewhere, sends those here nothing more,
# and has its proxy here say 503 to health checks. It waits until they have answered what they had begun, for REPLICAS
# at most, and then for BALANCER, in which the load balancer leaves the proxy, which still answers. After that
# Kubernetes stops the pod's Ray.
set -uo pipefail
replicas_s=$1 balancer_s=$2

command_lines() { cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\0' '\n'; }

node=$(command_lines | sed -n 's/^--node_id=//p' | head -n 1)
# A spot machine has 25 s in all, and which this is nobody knows: Serve stops replicas at once where they would have no time to wait for others.
ray drain-node --node-id="$node" --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message="the pod ends" \
    --deadline-remaining-seconds=20 &
told=$!
for ((waited = 0; waited < replicas_s; waited++)); do
    [[ $'\n'$(command_lines) == *$'\nray::ServeReplica'* ]] || break # by `grep -q` the pipe would break, which counts as none
    sleep 1
done
sleep "$balancer_s"
wait "$told"
