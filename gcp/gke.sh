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
#   gcp/gke.sh new-key              makes another; the one before is good until the next, all others are not; where an
#                                   earlier new-key failed, it ends that one instead
#   gcp/gke.sh down                 deletes all of it; --bundles: the bucket too; --ours: also where CLUSTER, REPOSITORY or BUCKET is set
#
# --dry-run prints the commands instead. Each may be repeated: what is there already is left as it is.
# Settings are environment variables: PROJECT and HOST (the service's name in the DNS) must be given; the rest is here.
set -euo pipefail
readonly called_from=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source gcp/steps.sh
source gcp/waits.sh

: "${REGION:=us-central1}" "${CLUSTER:=caption-ray}" "${REPOSITORY:=caption-ray}" "${KUBERAY:=1.7.0}"
: "${REDIS:=}" # IP:PORT, to outlive a lost head; see "Fault tolerance" in gcp/README.md
: "${CUDA_BUILD:=cu130}" # of PyTorch's for GPUs, in the image of --gpu
: "${PYTHON:=python}" "${ANSWERS:=10}" "${SECONDS_BETWEEN:=2}"
readonly namespace=caption-ray service=caption-ray operator=kuberay-system
readonly nameless=latest # the tag that stands for none
dry_run='' gpu='' bundles='' ours='' before=''

main() {
    local words=()
    for word in "$@"; do
        case $word in
            --dry-run) dry_run=yes ;;
            --gpu) gpu=yes ;;
            --bundles) bundles=yes ;;
            --ours) ours=yes ;;
            -*) fail "no such option: $word; there are --dry-run, --gpu, --bundles and --ours" ;;
            *) words+=("$word") ;;
        esac
    done
    : "${PROJECT:?the project id, as of 'gcloud projects list'}" "${HOST:?the name of the service in the DNS}"
    has_tag=${TAG:+yes}
    : "${BUCKET:=$PROJECT-caption-ray}" "${TAG:=$(git rev-parse --short HEAD 2> /dev/null || echo "$nameless")}"
    image=$REGION-docker.pkg.dev/$PROJECT/$REPOSITORY/caption-ray:$TAG${gpu:+-cuda}
    case ${words[*]:0:1} in
        up | image | roll-back | status | key | new-key | down) takes 0 "${words[@]}" ;;
        upload | deploy | roll-out) takes 1 "${words[@]}" ;;
        *) fail "up, image, upload, deploy, roll-out, roll-back, status, key, new-key or down? See the head of gcp/gke.sh" ;;
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
    # Shown to be ours by a record in the DNS, so the certificate is there before the load balancer is.
    ensure gcloud certificate-manager dns-authorizations describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager dns-authorizations create "$service" --project="$PROJECT" --domain="$HOST"
    ensure gcloud certificate-manager certificates describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager certificates create "$service" --project="$PROJECT" --domains="$HOST" \
        --dns-authorizations="$service"
    must_be_for_host
    ensure gcloud certificate-manager maps describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager maps create "$service" --project="$PROJECT"
    ensure gcloud certificate-manager maps entries describe "$service" --project="$PROJECT" --map="$service" -- \
        gcloud certificate-manager maps entries create "$service" --project="$PROJECT" --map="$service" \
        --certificates="$service" --hostname="$HOST"
    say "now add two records to the DNS: this one, for the certificate, which comes some minutes after,"
    run gcloud certificate-manager dns-authorizations describe "$service" --project="$PROJECT" \
        --format='value(dnsResourceRecord.name,dnsResourceRecord.type,dnsResourceRecord.data)'
    say "and one of type A, from $HOST to this address"
    run gcloud compute addresses describe "$service" --project="$PROJECT" --global --format='value(address)'
}

do_image() {
    local variant=cpu
    [[ -z $gpu ]] || variant=cuda
    must_have_name
    # The same name for another image would start no other cluster, and give pods that start later other code.
    [[ -n $has_tag || -n $dry_run || -z $(git status --porcelain 2> /dev/null) ]] ||
        fail "this clone has changes, and the image would be named after the commit without them: commit, or name it by TAG"
    run gcloud builds submit . --project="$PROJECT" --region="$REGION" --config=gcp/cloudbuild.yaml \
        --gcs-source-staging-dir="gs://$BUCKET/source" \
        --substitutions="_IMAGE=$image,_VARIANT=$variant,_CUDA_BUILD=$CUDA_BUILD,_REVISION=$TAG"
}

do_upload() {
    [[ $1 == /* || $1 == *://* ]] || set -- "$called_from/$1"
    run "$PYTHON" gcp/upload_bundle.py --bundle "$1" --destination "gs://$BUCKET/bundles"
}

do_deploy() {
    must_end_in_digest "$1"
    must_have_name
    local render=("$PYTHON" gcp/manifests.py render --image "$image" --bundle "$1" --host "$HOST") before='' keys=KEYS key
    [[ -z $gpu ]] || render+=(--gpu)
    [[ -z $REDIS ]] || render+=(--redis "$REDIS")
    use_cluster
    # For the Secret; not later, because with Redis the policy that stands in the file is not all of it.
    ensure kubectl get namespace "$namespace" -- kubectl apply --filename=gcp/cluster.yaml
    ensure kubectl get secret caption-ray-api-keys --namespace="$namespace" -- make_key
    if [[ -z $dry_run ]]; then
        key=$(api_key) # by itself, where a failure ends the script
        [[ -n $key ]] ||
            fail "no key in the Secret: kubectl delete secret caption-ray-api-keys --namespace=$namespace, and again"
        keys=$(keys_digest)
        before=$(kubectl get rayservice "$service" --namespace="$namespace" --ignore-not-found --output=json)
    fi
    say "the RayService on the cluster, if there is one, says which bundle to go back to"
    pipe "${render[@]}" --keys "$keys" -- kubectl apply --filename=- <<< "$before"
    await_upgrade "$image"
    await_certificate
    await_bundle "$1"
}

do_roll_out() {
    must_end_in_digest "$1"
    change_service roll-out "$1"
    await_bundle "$1" put_back
}

do_roll_back() {
    change_service roll-back
    local now=URI
    [[ -n $dry_run ]] || now=$(live '{.metadata.annotations.caption-ray/bundle}')
    await_bundle "$now" put_back
}

do_status() {
    use_cluster
    run kubectl get rayservice,pods,gateway --namespace="$namespace"
    say "curl https://$HOST/v1/model"
    [[ -n $dry_run ]] || ask /v1/model "$(api_key)"
}

do_key() {
    use_cluster
    say "the first of the keys in the Secret caption-ray-api-keys"
    [[ -n $dry_run ]] || api_key
}

do_new_key() {
    use_cluster
    say "kubectl patch secret caption-ray-api-keys: a new key, and the newest of those before"
    local digest=KEYS used old new
    if [[ -z $dry_run ]]; then
        old=$(api_key) # not within the patch, where a failure would go unseen, and the old key away
        [[ -n $old ]] || fail "no key in the Secret caption-ray-api-keys; nothing is changed"
        digest=$(keys_digest)
        used=$(of_active '{.spec.workerGroupSpecs[0].template.metadata.annotations.caption-ray/keys}')
        if [[ $used == "$digest" ]]; then
            new=$(openssl rand -hex 24)
            [[ -n $new ]] || fail "openssl makes no key; nothing is changed"
            kubectl patch secret caption-ray-api-keys --namespace="$namespace" --type=merge --patch-file=/dev/stdin \
                <<< "{\"stringData\": {\"keys\": \"$new,$old\"}}"
            digest=$(keys_digest)
        else
            # Another key now would end the only one that clients have, before the workers know the next.
            say "the workers that answer do not have the keys of the Secret yet: they are given these, and no other is made"
        fi
    fi
    change_service new-key "$digest"
    await_upgrade
}

do_down() {
    [[ -n $dry_run || -n $ours || "$CLUSTER $REPOSITORY" == "caption-ray caption-ray" && ( -z $bundles || $BUCKET == "$PROJECT-caption-ray" ) ]] ||
        fail "down deletes the cluster $CLUSTER, the repository $REPOSITORY${bundles:+, the bucket $BUCKET} and all that is" \
            "in them, others' things too; --ours says that they are this service's alone"
    # The gateway first: its load balancer outlives a cluster that is gone. Then what KubeRay made: with Redis it deletes
    # a cluster by a Job, which a namespace that is itself being deleted refuses, and then waits for it for ever.
    if [[ -n $dry_run ]] || exists gcloud container clusters describe "$CLUSTER" --project="$PROJECT" --region="$REGION"; then
        use_cluster
        run kubectl delete gateway --all --namespace="$namespace" --ignore-not-found --wait --timeout=10m
        { run kubectl delete rayservice,raycluster --all --namespace="$namespace" --ignore-not-found --wait --timeout=10m &&
            run kubectl delete namespace "$namespace" --ignore-not-found --wait --timeout=10m; } ||
            say "that is not gone, or not yet; it goes with the cluster"
        run gcloud container clusters delete "$CLUSTER" --project="$PROJECT" --region="$REGION" --quiet
    fi
    remove gcloud certificate-manager maps entries describe "$service" --project="$PROJECT" --map="$service" -- \
        gcloud certificate-manager maps entries delete "$service" --project="$PROJECT" --map="$service" --quiet
    remove gcloud certificate-manager maps describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager maps delete "$service" --project="$PROJECT" --quiet
    remove gcloud certificate-manager certificates describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager certificates delete "$service" --project="$PROJECT" --quiet
    remove gcloud certificate-manager dns-authorizations describe "$service" --project="$PROJECT" -- \
        gcloud certificate-manager dns-authorizations delete "$service" --project="$PROJECT" --quiet
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
    say "left in $PROJECT, of this or of others: services and roles, which cost nothing, and these clusters, disks, rules and buckets"
    run gcloud container clusters list --project="$PROJECT" --format='value(name,location)'
    run gcloud compute disks list --project="$PROJECT" --format='value(name,zone)'
    run gcloud compute forwarding-rules list --project="$PROJECT" --format='value(name,IPAddress)'
    run gcloud storage buckets list --project="$PROJECT" --format='value(name)'
}

# Under one name for all images nothing would change on the cluster, or only some of its pods.
must_have_name() {
    [[ -n $has_tag || -n $dry_run || $TAG != "$nameless" ]] ||
        fail "git tells no commit of this folder, which the image is named after: name the image by TAG"
}

use_cluster() {
    run gcloud container clusters get-credentials "$CLUSTER" --project="$PROJECT" --region="$REGION"
}

make_key() { # a key that is in no command line
    [[ -n $dry_run ]] || command -v openssl > /dev/null || fail "openssl is not installed; it makes the API key"
    pipe openssl rand -hex 24 -- \
        kubectl create secret generic caption-ray-api-keys --namespace="$namespace" --from-file=keys=/dev/stdin
}

# Pods read the keys when they start, so the workers' template names them, by a digest that tells nothing.
keys_digest() {
    kubectl get secret caption-ray-api-keys --namespace="$namespace" --output='jsonpath={.data.keys}' |
        openssl dgst -sha256 -r | cut -c -12
}

change_service() {
    use_cluster
    local patch=''
    say "$PYTHON gcp/manifests.py $*, from and to the RayService on the cluster"
    if [[ -z $dry_run ]]; then
        before=$(kubectl get rayservice "$service" --namespace="$namespace" --output=json)
        patch=$("$PYTHON" gcp/manifests.py "$@" <<< "$before")
    fi
    run kubectl patch rayservice "$service" --namespace="$namespace" --type=merge --patch-file=/dev/stdin <<< "$patch"
}

# Undoes what change_service did, unless others have changed it since. A refused bundle that the RayService went on
# naming would be the one to go back to from the next, and what a new cluster starts with. For ||, so it ends nothing.
put_back() { # URI
    local now patch
    now=$(live '{.metadata.annotations.caption-ray/bundle}') || return
    [[ $now == "$1" ]] || { say "the RayService names $now by now, so nothing is put back" && return 0; }
    patch=$("$PYTHON" gcp/manifests.py put-back <<< "$before") || return
    run kubectl patch rayservice "$service" --namespace="$namespace" --type=merge --patch-file=/dev/stdin \
        <<< "$patch" || return
    now=$(live '{.metadata.annotations.caption-ray/bundle}') || return
    [[ $now != "$1" ]] || return # it was repeated
    say "the RayService is what it was before, and names $now"
}

main "$@"
