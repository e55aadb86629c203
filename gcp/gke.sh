#!/usr/bin/env bash
# The service on Google Kubernetes Engine, from nothing and back to nothing.
#
#   gcp/gke.sh up                   project's services, registry, bucket, cluster, operator, address, certificate
#   gcp/gke.sh image                builds the image by Cloud Build
#   gcp/gke.sh upload FOLDER        copies a bundle to gs://, under its digest, and prints its URI
#   gcp/gke.sh deploy URI           starts the service with a bundle, or changes it; --gpu: on L4 GPUs
#   gcp/gke.sh roll-out URI         has the running service answer with another bundle, without a restart
#   gcp/gke.sh roll-back            and with the one before
#   gcp/gke.sh status | key         how it is; the API key
#   gcp/gke.sh down                 deletes all of it; --bundles: the bucket too
#
# --dry-run prints the commands instead. Each may be repeated: what is there already is left as it is.
# Settings are environment variables: PROJECT and HOST (the service's name in the DNS) must be given; the rest is here.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source gcp/steps.sh

: "${REGION:=us-central1}" "${CLUSTER:=caption-ray}" "${REPOSITORY:=caption-ray}" "${KUBERAY:=1.7.0}"
: "${REDIS:=}" # IP:PORT, to outlive a lost head; see "Fault tolerance" in gcp/README.md
: "${PYTHON:=python}" "${ANSWERS:=20}"
readonly namespace=caption-ray service=caption-ray operator=kuberay-system
dry_run='' gpu='' bundles=''

main() {
    local words=()
    for word in "$@"; do
        case $word in
            --dry-run) dry_run=yes ;;
            --gpu) gpu=yes ;;
            --bundles) bundles=yes ;;
            -*) fail "no such option: $word; there are --dry-run, --gpu and --bundles" ;;
            *) words+=("$word") ;;
        esac
    done
    : "${PROJECT:?the project id, as of 'gcloud projects list'}" "${HOST:?the name of the service in the DNS}"
    : "${BUCKET:=$PROJECT-caption-ray}" "${TAG:=$(git rev-parse --short HEAD 2> /dev/null || echo latest)}"
    image=$REGION-docker.pkg.dev/$PROJECT/$REPOSITORY/caption-ray:$TAG${gpu:+-cuda}
    case ${words[*]:0:1} in
        up | image | roll-back | status | key | down) takes 0 "${words[@]}" ;;
        upload | deploy | roll-out) takes 1 "${words[@]}" ;;
        *) fail "up, image, upload, deploy, roll-out, roll-back, status, key or down? See the head of gcp/gke.sh" ;;
    esac
    "do_${words[0]//-/_}" "${words[@]:1}"
}

do_up() {
    run gcloud services enable --project="$PROJECT" artifactregistry.googleapis.com certificatemanager.googleapis.com \
        cloudbuild.googleapis.com compute.googleapis.com container.googleapis.com storage.googleapis.com
    ensure gcloud artifacts repositories describe "$REPOSITORY" --project="$PROJECT" --location="$REGION" -- \
        gcloud artifacts repositories create "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
        --repository-format=docker
    ensure gcloud storage buckets describe "gs://$BUCKET" --project="$PROJECT" -- \
        gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="$REGION" \
        --uniform-bucket-level-access --public-access-prevention
    ensure gcloud container clusters describe "$CLUSTER" --project="$PROJECT" --region="$REGION" -- \
        gcloud container clusters create-auto "$CLUSTER" --project="$PROJECT" --region="$REGION" \
        --release-channel=regular
    use_cluster
    run helm upgrade --install kuberay-operator kuberay-operator --version "$KUBERAY" \
        --repo https://ray-project.github.io/kuberay-helm --namespace "$operator" --create-namespace --wait
    local number=PROJECT_NUMBER
    [[ -n $dry_run ]] || number=$(gcloud projects describe "$PROJECT" --format='value(projectNumber)')
    # Cloud Build builds, and nodes run and pull the image, as this account, which in newer projects may do nothing
    # unasked. No pod is it: Workload Identity stands between.
    local account=serviceAccount:$number-compute@developer.gserviceaccount.com
    for role in cloudbuild.builds.builder container.defaultNodeServiceAccount; do
        run gcloud projects add-iam-policy-binding "$PROJECT" --role="roles/$role" --member="$account" \
            --condition=None --format=none
    done
    run gcloud artifacts repositories add-iam-policy-binding "$REPOSITORY" --project="$PROJECT" --location="$REGION" \
        --role=roles/artifactregistry.reader --member="$account"
    # Workload Identity Federation: whatever runs in the namespace may read bundles, and nothing else.
    local pool=projects/$number/locations/global/workloadIdentityPools/$PROJECT.svc.id.goog
    run gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --role=roles/storage.objectViewer \
        --member="principalSet://iam.googleapis.com/$pool/namespace/$namespace"
    ensure gcloud compute addresses describe "$service" --project="$PROJECT" --global -- \
        gcloud compute addresses create "$service" --project="$PROJECT" --global
    ensure gcloud certificate-manager certificates describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager certificates create "$service" --project="$PROJECT" --domains="$HOST"
    ensure gcloud certificate-manager maps describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager maps create "$service" --project="$PROJECT"
    ensure gcloud certificate-manager maps entries describe "$service" --project="$PROJECT" --map="$service" -- \
        gcloud certificate-manager maps entries create "$service" --project="$PROJECT" --map="$service" \
        --certificates="$service" --hostname="$HOST"
    say "now point $HOST in the DNS to this address; the certificate comes some minutes after"
    run gcloud compute addresses describe "$service" --project="$PROJECT" --global --format='value(address)'
}

do_image() {
    local variant=cpu
    [[ -z $gpu ]] || variant=cuda
    run gcloud builds submit . --project="$PROJECT" --region="$REGION" --config=gcp/cloudbuild.yaml \
        --substitutions="_IMAGE=$image,_VARIANT=$variant,_REVISION=$TAG"
}

do_upload() {
    run "$PYTHON" gcp/upload_bundle.py --bundle "$1" --destination "gs://$BUCKET/bundles"
}

do_deploy() {
    local render=("$PYTHON" gcp/manifests.py render --image "$image" --bundle "$1" --host "$HOST")
    [[ -z $gpu ]] || render+=(--gpu)
    [[ -z $REDIS ]] || render+=(--redis "$REDIS")
    use_cluster
    run kubectl apply --filename=gcp/cluster.yaml
    ensure kubectl get secret caption-ray-api-keys --namespace="$namespace" -- make_key
    pipe "${render[@]}" -- kubectl apply --filename=-
    run kubectl wait rayservice/"$service" --namespace="$namespace" --for=condition=Ready --timeout=30m
    await_bundle "$1"
}

do_roll_out() {
    change_bundle roll-out "$1"
    await_bundle "$1"
}

do_roll_back() {
    change_bundle roll-back
    local now=URI
    [[ -n $dry_run ]] || now=$(kubectl get rayservice "$service" --namespace="$namespace" \
        --output='jsonpath={.metadata.annotations.caption-ray/bundle}')
    await_bundle "$now"
}

do_status() {
    use_cluster
    run kubectl get rayservice,pods,gateway --namespace="$namespace"
    ask /v1/model
}

do_key() {
    use_cluster
    run kubectl get secret caption-ray-api-keys --namespace="$namespace" --output='go-template={{.data.keys | base64decode}}'
}

do_down() {
    # The gateway first: its load balancer outlives a cluster that is gone.
    if [[ -n $dry_run ]] || exists gcloud container clusters describe "$CLUSTER" --project="$PROJECT" --region="$REGION"; then
        use_cluster
        run kubectl delete namespace "$namespace" --ignore-not-found --wait
        run gcloud container clusters delete "$CLUSTER" --project="$PROJECT" --region="$REGION" --quiet
    fi
    remove gcloud certificate-manager maps entries describe "$service" --project="$PROJECT" --map="$service" -- \
        gcloud certificate-manager maps entries delete "$service" --project="$PROJECT" --map="$service" --quiet
    remove gcloud certificate-manager maps describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager maps delete "$service" --project="$PROJECT" --quiet
    remove gcloud certificate-manager certificates describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager certificates delete "$service" --project="$PROJECT" --quiet
    remove gcloud compute addresses describe "$service" --project="$PROJECT" --global -- \
        gcloud compute addresses delete "$service" --project="$PROJECT" --global --quiet
    remove gcloud artifacts repositories describe "$REPOSITORY" --project="$PROJECT" --location="$REGION" -- \
        gcloud artifacts repositories delete "$REPOSITORY" --project="$PROJECT" --location="$REGION" --quiet
    if [[ -n $bundles ]]; then
        remove gcloud storage buckets describe "gs://$BUCKET" --project="$PROJECT" -- \
            gcloud storage rm "gs://$BUCKET" --project="$PROJECT" --recursive
    else
        say "gs://$BUCKET is kept, and costs what it stores; --bundles deletes it too"
    fi
}

use_cluster() {
    run gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --region="$REGION"
}

make_key() { # a key that is in no command line
    pipe openssl rand -hex 24 -- \
        kubectl create secret generic caption-ray-api-keys --namespace="$namespace" --from-file=keys=/dev/stdin
}

change_bundle() {
    use_cluster
    local live='' patch=''
    say "$PYTHON gcp/manifests.py $*, from and to the RayService on the cluster"
    if [[ -z $dry_run ]]; then
        live=$(kubectl get rayservice "$service" --namespace="$namespace" --output=json)
        patch=$("$PYTHON" gcp/manifests.py "$@" <<< "$live")
    fi
    run kubectl patch rayservice "$service" --namespace="$namespace" --type=merge --patch-file=/dev/stdin <<< "$patch"
}

# A bundle's folder ends in the first twelve digits of its digest, with which the id of the model begins. Each replica
# changes by itself, so $ANSWERS answers in a row must come from it.
await_bundle() {
    local digest=${1##*-} answers=0 model=''
    say "waiting until $ANSWERS answers in a row come from $digest"
    [[ -z $dry_run ]] || return 0
    for ((attempt = 0; attempt < 300 && answers < ANSWERS; attempt++)); do
        model=$(ask /v1/model || true)
        if [[ $model == *'"id":"'"$digest"* ]]; then answers=$((answers + 1)); else answers=0 && sleep 2; fi
    done
    ((answers == ANSWERS)) || fail "$HOST does not answer with $1; its last word was: ${model:-none}"
}

ask() {
    say "curl https://$HOST$1"
    [[ -z $dry_run ]] || return 0
    local key
    key=$(kubectl get secret caption-ray-api-keys --namespace="$namespace" --output='go-template={{.data.keys | base64decode}}')
    curl --silent --show-error --fail --max-time 30 --config - <<< "url = \"https://$HOST$1\"
header = \"X-API-Key: $key\""
}

main "$@"
