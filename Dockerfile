# One image for captions over HTTP, and for the head and the workers of a Ray cluster.
#
#   docker build -t caption-ray .                                       for CPUs; --build-arg VARIANT=cuda for GPUs
#   docker run -p 8000:8000 -v "$PWD/runs/quickstart/bundle:/bundle:ro" caption-ray
#
# With `--read-only --tmpfs /tmp` it runs on a root file system that cannot be written to. The arguments pin what it is
# made of; gcp/constraints.txt pins the rest.
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS dependencies
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ARG VARIANT=cpu
# The build of torch for VARIANT=cuda, one that PyTorch's index has for TORCH_VERSION. cu130 needs a driver from 580 on.
ARG CUDA_BUILD=cu130
ARG RAY_VERSION=2.60.0
ARG TORCH_VERSION=2.14.1
ARG TORCHVISION_VERSION=0.29.1
ARG TORCH_INDEX=https://download.pytorch.org/whl
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# The local version (+cpu, +cu...) makes it an error if an index offers another build than the variant asks for.
RUN case "$VARIANT" in cpu) build=cpu ;; cuda) build=$CUDA_BUILD ;; *) echo "VARIANT is cpu or cuda, not '$VARIANT'"; exit 2 ;; esac \
    && python -m venv /opt/venv \
    && printf 'torch==%s+%s\ntorchvision==%s+%s\nray==%s\n' \
        "$TORCH_VERSION" "$build" "$TORCHVISION_VERSION" "$build" "$RAY_VERSION" > /opt/pinned.txt \
    && pip install --index-url "$TORCH_INDEX/$build" --constraint /opt/pinned.txt torch torchvision
COPY pyproject.toml gcp/constraints.txt /opt/
RUN python -c 'import tomllib; print(*tomllib.load(open("/opt/pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' \
        > /opt/requirements.txt \
    && pip install --constraint /opt/pinned.txt --constraint /opt/constraints.txt --requirement /opt/requirements.txt \
    && echo /app > "$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/caption_ray.pth" \
    && pip uninstall --yes pip

# The decoder's C code, for the kinds of CPUs that a node may have; the image itself needs no compiler.
FROM dependencies AS kernels
RUN apt-get update && apt-get install --yes --no-install-recommends gcc=4:12.* libc6-dev=2.36-*
WORKDIR /app
# No more than is compiled and compiles it: else every change to the service would have it done anew.
COPY caption_ray/__init__.py caption_ray/
COPY caption_ray/model caption_ray/model
RUN ["python", "-m", "caption_ray.model.portable"]

FROM ${PYTHON_IMAGE}
ARG VARIANT=cpu
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="caption_ray" \
    org.opencontainers.image.description="Image captioning on Ray: HTTP service, Ray head and Ray worker ($VARIANT)" \
    org.opencontainers.image.licenses="MIT" \
    org.opencontainers.image.version="$VERSION" \
    org.opencontainers.image.revision="$REVISION"
# wget is what KubeRay's own probes call, where a manifest has none.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini=0.19.* wget=1.21.* \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log \
    && useradd --uid 1000 --user-group --create-home ray \
    && ln -s /opt/venv/bin/ray /opt/venv/bin/serve /usr/local/bin/
COPY --from=dependencies /opt/venv /opt/venv
COPY gcp/drain_worker.sh /usr/local/bin/drain-worker
# GKE mounts a GPU's driver and nvidia-smi under /usr/local/nvidia, and leaves it to the image to look there.
ENV PATH=/opt/venv/bin:$PATH:/usr/local/nvidia/bin \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64 \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    RAY_USAGE_STATS_ENABLED=0 \
    CAPTION_RAY_BUNDLE=/bundle
WORKDIR /app
COPY serve_config.yaml LICENSE ./
COPY jobs jobs
COPY caption_ray caption_ray
COPY --from=kernels /app/caption_ray/model/kernels/portable caption_ray/model/kernels/portable
RUN ["python", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "caption_ray", "jobs"]
USER 1000:1000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8000, 4); c.request('GET', '/readyz'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "-m", "caption_ray.serve.local", "--host", "0.0.0.0"]
