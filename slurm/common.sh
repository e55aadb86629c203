# Sourced by the scripts beside it: where a user's clusters are written down, and what the site file says.
# shellcheck shell=bash

export USER=${USER:-$(id -un)} HOME=${HOME:-$(cd ~ && pwd)} # which `sbatch --export=NONE` leaves out
clusters=$HOME/.caption_ray/clusters # a folder and a file JOB.env for each running one

say() { printf '%s %s\n' "$(date +%T)" "$*"; }
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit "${code:-1}"
}

# Read the site file that lies in a folder, if there is one; CAPTION_RAY_SITE names another.
read_site() {
    local site=${CAPTION_RAY_SITE:-$1/site.env}
    if [[ -e $site ]]; then
        set -a # node.sh and the command are to have it too
        # shellcheck source=/dev/null
        source "$site"
        set +a
    elif [[ -n ${CAPTION_RAY_SITE:-} ]]; then
        fail "CAPTION_RAY_SITE: there is no $site; copy slurm/site.env.example to it, or unset the variable"
    fi
}

# Print the folder of the virtual environment: what the site file says, else scratch where the user has one, else home.
environment_folder() {
    local scratch=${CAPTION_RAY_SCRATCH:-/scratch/$USER}
    if [[ -n ${CAPTION_RAY_VENV:-} ]]; then
        printf '%s\n' "$CAPTION_RAY_VENV"
    elif [[ -d $scratch && -w $scratch ]]; then
        printf '%s\n' "$scratch/caption_ray/venv"
    else
        printf '%s\n' "$HOME/.caption_ray/venv"
    fi
}

load_modules() {
    [[ -z ${CAPTION_RAY_MODULES:-} ]] && return
    set +u # what a site has in its profile and its modules is seldom written for it
    # `module` is a function of login shells, which a batch job need not be.
    type module > /dev/null 2>&1 || source /etc/profile || true # what fails in there is no reason to end without a word
    # shellcheck disable=SC2086 # several modules, apart by spaces
    module load $CAPTION_RAY_MODULES || fail "module load $CAPTION_RAY_MODULES failed; see CAPTION_RAY_MODULES"
    set -u
}

activate_environment() {
    local folder
    load_modules
    folder=$(environment_folder)
    [[ -x $folder/bin/ray ]] || fail "no Ray in $folder: run slurm/setup_env.sh, or name the environment in CAPTION_RAY_VENV"
    # shellcheck source=/dev/null
    source "$folder/bin/activate"
}

# Tell whether an option of sbatch has its value with it, or takes none.
is_whole_option() {
    case $1 in
        --*=* | -[A-Za-z]?* | -[HIOQVWhksuv]) true ;;
        --consolidate-segments | --contiguous | --exclusive | --get-user-env | --help | --hold | --ignore-pbs) true ;;
        --immediate | --nice | --no-kill | --no-requeue | --oom-kill-step | --overcommit | --oversubscribe) true ;;
        --parsable | --propagate | --quiet | --reboot | --requeue | --share | --spread-job | --stepmgr) true ;;
        --test-only | --usage | --use-min-nodes | --verbose | --version | --wait) true ;;
        *) false ;;
    esac
}

# Print the numbers of this user's running jobs that are clusters.
running_clusters() {
    local folder jobs
    jobs=$(squeue --me --noheader --states=RUNNING --format=%A 2> /dev/null) || true
    for folder in "$clusters"/*/; do
        folder=$(basename "$folder")
        ! grep -qx "$folder" <<< "$jobs" || echo "$folder"
    done
}

# Tell whether a job's number is that of a job of another SLURM, for which this home folder lies there too.
is_elsewhere() {
    local name
    name=$(cat "$clusters/$1/slurm_cluster" 2> /dev/null) && [[ $name != "${SLURM_CLUSTER_NAME:-}" ]]
}

# Remove what is written of clusters whose head's machine crashed, and that are not to start again: tokens.
forget_ended_clusters() {
    local file jobs name number ended=()
    jobs=$(squeue --me --noheader --format=%A) || return 0
    for file in "$clusters"/*; do
        name=$(basename "$file")
        number=${name%%.*}
        [[ $name != *.fruitless || $name == "$number.${SLURM_CLUSTER_NAME:-}.fruitless" ]] || continue
        grep -qx "$number" <<< "$jobs" || is_elsewhere "$number" || ended+=("$file")
    done
    ((${#ended[@]} == 0)) || rm -rf "${ended[@]}" # together: a folder says of the files beside it whose they are
}

# Have the environment variables of a running cluster: of a job, or of the only one that waits for work.
find_cluster() {
    local job=${1:-} number found=()
    for number in $(running_clusters); do
        [[ -e $clusters/$number.env ]] || continue # still starting
        if [[ -n $job ]]; then
            [[ $number == "$job" ]] || continue
        elif [[ -e $clusters/$number/stop ]] || grep -qx CAPTION_RAY_COMMAND=1 "$clusters/$number.env"; then
            continue
        fi
        found+=("$number")
    done
    if ((${#found[@]} == 0)); then
        code=2 fail "no ${job:+running }cluster${job:+ $job} is up: start one by slurm/ray_cluster.sh; squeue --me shows what waits"
    elif ((${#found[@]} > 1)); then
        code=2 fail "several clusters are up (${found[*]}): name one"
    fi
    unset RAY_AUTH_TOKEN # would count for more than the file
    set -a
    # shellcheck source=/dev/null
    source "$clusters/${found[0]}.env"
    set +a
}
