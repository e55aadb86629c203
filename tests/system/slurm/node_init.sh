#!/usr/bin/env bash
# Process 1 of a machine of the lab (see slurm_lab.py): sets its name, network and mounts up, then runs its daemon.
#
#   node_init.sh NAME ADDRESS DAEMON...
#
# Folders named in HIDDEN become empty ones of this machine's own; of what lies below them only SHARED stays to be seen.
set -euo pipefail
name=$1 address=$2
shift 2

hostname "$name"
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done # the host puts it here
ip address add "$address/24" dev eth0
ip link set eth0 up

mkdir -p "$LAB/machines/$name/stash"
mount -t tmpfs -o size=64k tmpfs "$LAB/machines/$name/stash"
for folder in $HIDDEN; do
    stash=$LAB/machines/$name/stash/${folder//\//_}
    mkdir "$stash"
    mount --bind "$folder" "$stash"
    mode=$(stat -c %a "$folder")
    mount -t tmpfs -o "size=2g,mode=$([[ $mode == 1777 ]] && echo 1777 || echo 755)" tmpfs "$folder"
    for path in $SHARED; do
        [[ $path == "$folder"/* ]] || continue
        mkdir -p "$path"
        mount --bind "$stash/${path#"$folder"/}" "$path"
    done
done
umount --lazy "$LAB/machines/$name/stash"
mount -t tmpfs -o size=4g,mode=1777 tmpfs /dev/shm
for file in hosts passwd group; do mount --bind "$LAB/$file" "/etc/$file"; done
# slurmd 22.05 does not start where nothing is mounted here, even if it makes no use of it.
[[ -n $CGROUPS ]] || mount -t tmpfs -o size=1m tmpfs /sys/fs/cgroup

"$@" &
daemon=$!
while kill -0 "$daemon" 2> /dev/null; do wait -n || true; done # reaps orphans too, as process 1 must
