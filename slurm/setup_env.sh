#!/usr/bin/env bash
# Makes the environment on the cluster, or brings it up to date; run it on a login node, in a checkout.
#
#   slurm/setup_env.sh [--gpu=p100 | --gpu=p100-cu126 | --gpu=any]
#
# p100: torch from the public index with kernels for that GPU (the default).  p100-cu126: a newer one from PyTorch's own
# index.  any: the newest torch there is, which has no kernels for a P100.  Where it is put, and which Python makes it,
# the site file says; see site.env.example.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=slurm/common.sh
source "$here/common.sh"
read_site "$here"

gpu=${CAPTION_RAY_GPU:-p100}
while [[ $# -gt 0 ]]; do
    case $1 in
        --gpu=*) gpu=${1#*=} && shift ;;
        *) code=2 fail "$1: no such option; usage: slurm/setup_env.sh [--gpu=p100 | --gpu=p100-cu126 | --gpu=any]" ;;
    esac
done
case $gpu in
    p100 | p100-cu126) constraints=(--constraint "$here/constraints-$gpu.txt") ;;
    any) constraints=() ;;
    *) code=2 fail "--gpu=$gpu: must be p100, p100-cu126 or any" ;;
esac

load_modules
is_new_enough() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1; }
python=${CAPTION_RAY_PYTHON:-}
if [[ -z $python ]]; then # the newest there is; pyenv has commands for those that it does not run as well
    for python in python3.13 python3.12 python3.11 python3.10 python3; do
        ! is_new_enough "$python" || break
    done
fi
is_new_enough "$python" ||
    fail "$python is older than 3.10, cannot make environments, or is absent: load a module with another (CAPTION_RAY_MODULES), or name one in CAPTION_RAY_PYTHON"

folder=$(environment_folder)
note=$folder/made-from
made_from=$({ "$python" --version && cat "$here/../pyproject.toml" && printf '%s\n' "$gpu" "$here" && cat "$here"/constraints-*.txt; } | sha256sum)
if [[ -e $note && $(< "$note") == "$made_from" ]]; then
    say "$folder is up to date"
    exit 0
fi
if [[ -e $note ]]; then
    in_use=$(running_clusters)
    [[ -z $in_use ]] || fail "$folder is in use by cluster ${in_use//$'\n'/, }, which slurm/stop.sh ends"
elif [[ -n $(ls -A "$folder" 2> /dev/null) ]]; then # what would be deleted
    fail "$folder holds what is not this script's; name an absent or empty folder in CAPTION_RAY_VENV, or delete it"
fi
say "making $folder with $("$python" --version), for $gpu"
mkdir -p "$folder"
if ! { : > "$note" && # first: what an interruption leaves here is this script's
    find "$folder" -mindepth 1 -maxdepth 1 ! -name "${note##*/}" -exec rm -rf {} + && "$python" -m venv "$folder"; }; then
    fail "$folder: no environment could be made there; is the quota used up? CAPTION_RAY_VENV names another place"
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
# Wheels kept for another time would fill the quota of the home folder.
install=("$folder/bin/pip" install --quiet --no-cache-dir "${constraints[@]}")
# From that index alone, else pip would take a newer patch release without these kernels from the public one.
[[ $gpu != p100-cu126 ]] || "${install[@]}" --index-url https://download.pytorch.org/whl/cu126 torch torchvision
"${install[@]}" --editable "$here/..[tune]"
kernels=$("$folder/bin/python" -c 'import torch; print(torch._C._cuda_getArchFlags() or "none")')
say "torch $("$folder/bin/python" -c 'import torch; print(torch.__version__)') has kernels for: $kernels"
[[ $gpu == any || " $kernels " == *" sm_60 "* ]] || fail "none of them for the P100 (sm_60): see slurm/constraints-$gpu.txt"
printf '%s\n' "$made_from" > "$note" # last: an interrupted installation is made anew
say "done; slurm/README.md goes on from here"
