# shellcheck shell=bash
# What gcp/gke.sh waits for, and how it asks the service. Where $dry_run is set, it says what it would wait for.
# shellcheck disable=SC2153,SC2154 # the variables are those of gke.sh, which sources this

# The operator has seen what was applied last, and the cluster that answers is the one that was asked for. Ready alone
# would be the old one's, which answers until the new one can.
await_upgrade() {
    local generation=GENERATION active running
    [[ -n $dry_run ]] || generation=$(live '{.metadata.generation}')
    run kubectl wait rayservice/"$service" --namespace="$namespace" \
        --for=jsonpath='{.status.observedGeneration}'="$generation" --timeout=5m
    run kubectl wait rayservice/"$service" --namespace="$namespace" --for=condition=Ready --timeout=30m
    run kubectl wait rayservice/"$service" --namespace="$namespace" --for=condition=UpgradeInProgress=False --timeout=30m ||
        fail "the new cluster does not become ready, and the old one goes on: \`kubectl describe rayservice\` says why"
    [[ -z $dry_run ]] || return 0
    running=$(of_active '{.spec.headGroupSpec.template.spec.containers[0].image}')
    active=$(live '{.status.activeServiceStatus.rayClusterName}')
    [[ $running == "${1:-$running}" ]] || fail "$active answers, with $running instead of $1: kubectl describe rayservice"
}

# HTTPS answers only with a certificate, which is issued once the record is in the DNS that `up` prints.
await_certificate() {
    local state=''
    say "waiting until the certificate for $HOST is active"
    [[ -z $dry_run ]] || return 0
    must_be_for_host
    for ((attempt = 0; attempt < 900; attempt++)); do
        state=$(certificate managed.state)
        [[ $state != ACTIVE ]] || return 0
        sleep "$SECONDS_BETWEEN"
    done
    fail "the certificate for $HOST is $state: is the record in the DNS that \`gcp/gke.sh up\` prints?"
}

# What is there is left as it is, also a certificate for the name that the service had before.
must_be_for_host() {
    [[ -z $dry_run ]] || return 0
    local domain
    domain=$(certificate 'managed.domains.list()')
    [[ $domain == "$HOST" ]] || fail "the certificate is for $domain, not for HOST=$HOST: \`gcp/gke.sh down\` first"
}

certificate() {
    gcloud certificate-manager certificates describe "$service" --project="$PROJECT" --format="value($1)"
}

# A bundle's folder ends in the first twelve digits of its digest, with which the id of the model begins. Each replica
# changes by itself, so ten answers in a row for each worker must come from it: one that still answers with another, of
# two or of ten, is then overlooked at most once in 30,000 times. URI [UNDO]: UNDO URI is run where it is refused, and
# not where it only does not answer, when it may still come.
await_bundle() {
    local digest=${1##*-} answers=0 model='' key='' needed workers remedy=''
    [[ -n ${2:-} ]] || remedy="; \`deploy\` the bundle before it again if this one cannot be read"
    say "waiting until $ANSWERS answers in a row for each worker come from $digest${2:+; a refusal is undone}"
    [[ -z $dry_run ]] || return 0
    workers=$(kubectl get pods --namespace="$namespace" --selector=caption-ray/role=worker --output=name | wc -l)
    needed=$((ANSWERS * (workers > 0 ? workers : 1)))
    key=$(api_key)
    for ((attempt = 0; attempt < 300 + needed && answers < needed; attempt++)); do
        model=$(ask /v1/model "$key" || true)
        if [[ $model == *'"id":"'"$digest"* ]]; then
            answers=$((answers + 1))
        elif [[ $model == *'"refused":"'*"$digest"* ]]; then
            [[ -z ${2:-} ]] || "$2" "$1" ||
                say "the RayService still names $1: \`gcp/gke.sh roll-back\` before all else"
            fail "$1 was refused, and the one before goes on$remedy: $model"
        else
            answers=0
            sleep "$SECONDS_BETWEEN"
        fi
    done
    ((answers == needed)) || fail "$HOST does not answer with $1$remedy; its last word was: ${model:-none}"
}

must_end_in_digest() {
    [[ $1 =~ -[0-9a-f]{12}$ ]] || fail "$1: a bundle's URI ends in its digest, as \`gcp/gke.sh upload\` prints it"
}

live() { kubectl get rayservice "$service" --namespace="$namespace" --output="jsonpath=$1"; }

of_active() { # the same of the cluster that answers
    local active
    active=$(live '{.status.activeServiceStatus.rayClusterName}')
    kubectl get raycluster "$active" --namespace="$namespace" --output="jsonpath=$1"
}

api_key() { # the newest
    local keys
    keys=$(kubectl get secret caption-ray-api-keys --namespace="$namespace" --output='go-template={{.data.keys | base64decode}}')
    echo "${keys%%,*}"
}

ask() { # PATH KEY
    curl --silent --show-error --fail --max-time 30 --config - <<< "url = \"https://$HOST$1\"
header = \"X-API-Key: $2\""
}
