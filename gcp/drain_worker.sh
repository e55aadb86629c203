#!/usr/bin/env bash
# What a worker's pod does before it ends: `drain-worker LEAST MOST`, in seconds.
#
# It tells Ray that this node will be gone, so that Serve starts its replicas elsewhere, sends them nothing more, and has
# its proxy here say 503 to the load balancer's health check. Then it waits until they have answered what they had
# begun, but LEAST for the load balancer, and no longer than MOST. The pod's Ray is stopped after that, by Kubernetes.
set -uo pipefail
least=$1 most=$2

command_lines() { cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\0' '\n'; }

node=$(command_lines | sed -n 's/^--node_id=//p' | head -n 1)
# A spot machine's 25 s, not MOST: Serve stops replicas at once where they would have no time to wait for others.
ray drain-node --node-id="$node" --reason=DRAIN_NODE_REASON_PREEMPTION --reason-message="the pod ends" \
    --deadline-remaining-seconds=20 &
told=$!
for ((waited = 0; waited < most; waited++)); do
    sleep 1
    ((waited + 1 < least)) || command_lines | grep -q '^ray::ServeReplica' || break
done
wait "$told"
