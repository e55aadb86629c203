# shellcheck shell=bash
# How gcp/gke.sh runs a step, or prints it where $dry_run is set.

# ensure FIND... -- MAKE...: makes what is not found. remove FIND... -- DELETE...: deletes what is.
ensure() {
    split "$@"
    [[ -z $dry_run ]] || echo "# unless this finds it: ${first[*]}"
    if [[ -z $dry_run ]] && exists "${first[@]}"; then say "there already: ${first[*]}"; else "${command[@]}"; fi
}

remove() {
    split "$@"
    [[ -z $dry_run ]] || echo "# if this finds it: ${first[*]}"
    if [[ -n $dry_run ]] || exists "${first[@]}"; then "${command[@]}"; fi
}

# Whether what a command describes is there. What fails otherwise, for want of rights or of the network, ends the
# script: taken for "not there", a cluster would be left running, and paid for.
absent='NOT_FOUND|\(NotFound\)|code=404|was not found|not found: 404|does not exist'
exists() {
    local said code=0
    said=$("$@" 2>&1 > /dev/null) || code=$?
    ((code)) || return 0
    # 126 and 127 are the shell's: the tool itself is not there.
    if ((code >= 126)) || ! grep -qE "$absent" <<< "$said"; then fail "$*: $said"; fi
    return 1
}

split() { # FIRST... -- COMMAND...; one that is no function of ours is run, and shown
    first=() command=()
    while [[ $1 != -- ]]; do first+=("$1") && shift; done
    command=("${@:2}")
    [[ $(type -t "${command[0]}") == function ]] || command=(run "${command[@]}")
}

run() {
    show "$@"
    [[ -n $dry_run ]] || "$@"
}

pipe() { # FROM... -- TO...
    local from=()
    while [[ $1 != -- ]]; do from+=("$1") && shift; done
    shift
    show "${from[@]}" '|' "$@"
    [[ -n $dry_run ]] || "${from[@]}" | "$@"
}

show() {
    local text
    printf -v text ' %q' "$@"
    text=${text// \\| / | }
    if [[ -n $dry_run ]]; then echo "${text:1}"; else echo "+${text}" >&2; fi
}

say() { echo "# $*" >&2; }

fail() {
    echo "gcp/gke.sh: $*" >&2
    exit 2
}

takes() {
    (($# == $1 + 2)) || fail "$2 takes $1 argument(s), not $(($# - 2))"
}
