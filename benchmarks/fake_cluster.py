"""A Ray cluster that scales by itself, whose nodes are processes of this machine."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID


@contextmanager
def fake_cluster(*, worker_cpus: int, max_workers: int, idle_s: float) -> Iterator[str]:
    """Start a head whose autoscaler starts nodes as processes of this machine, yield its address, and end them all.

    One worker is always there; others end when they have been without work for `idle_s`.
    ray.cluster_utils.AutoscalingCluster would do, but ends every other Ray of the user too, and lacks a file (2.60).
    """
    head = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}
    autoscaler = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        address = f"127.0.0.1:{port}"
        file = Path(folder, "autoscaling.json")
        file.write_text(json.dumps(_config(address, worker_cpus, max_workers, idle_s)))
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            "--node-ip-address=127.0.0.1",
            f"--port={port}",
        ]
        command += ["--num-cpus=0", f"--object-store-memory={100 << 20}", f"--autoscaling-config={file}"]
        command += ["--dashboard-port=0", f"--temp-dir={folder}/ray"]
        with Path(folder, "head.log").open("w") as log:
            process = subprocess.Popen(command, env={**os.environ, **head, **autoscaler}, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while "Ray runtime started" not in Path(folder, "head.log").read_text():  # Ray may say another address
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit(Path(folder, "head.log").read_text())
                time.sleep(0.2)
            yield address
        finally:
            for member in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            process.wait()


def _config(address: str, worker_cpus: int, max_workers: int, idle_s: float) -> dict[str, object]:
    worker = {"CPU": worker_cpus, "object_store_memory": 100 << 20}
    return {
        "cluster_name": "fake",
        "max_workers": max_workers,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": idle_s / 60,
        "provider": {
            "type": "external",  # as "fake_multinode" it would look for a file that the wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": address,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 1, "max_workers": max_workers},
        },
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{f"{name}_commands": [] for name in ("initialization", "setup", "head_setup", "worker_setup")},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
        **{name: [] for name in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
