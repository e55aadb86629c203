"""A cluster as a user of SLURM has it: on several machines, beside another user's. The tests build on each other."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

from slurm_user import BOBS_DISK, User
from waiting import wait_until

from caption_ray.bundle import load_bundle


def test_ray_has_the_sum_of_the_allocation(alice: User, cluster: int) -> None:
    """Of each node 3 CPUs, 2 GPUs and 6 GiB, of which the object store has three tenths: 3.6 and 8.4 GiB in all."""
    status = ""

    def is_complete() -> bool:
        nonlocal status
        status = alice.in_cluster(cluster, "ray status").stdout
        return status.count(" 1 node_") == 2

    wait_until(is_complete, 30, lambda: status)
    totals = [line.strip() for line in status.splitlines() if line.strip().startswith("0")]
    assert totals == ["0.0/6.0 CPU", "0.0/4.0 GPU", "0B/8.40GiB memory", "0B/3.60GiB object_store_memory"]


def test_what_a_user_needs_is_written_down(alice: User, cluster: int) -> None:
    written = (alice.clusters / f"{cluster}.env").read_text()
    address = alice.cluster(cluster)["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
    for line in (f"ssh -N -L 8265:{address} alice@login", "slurm/submit.sh python jobs/train.py flickr8k --data DATA"):
        assert line in written
        assert line in alice.log(cluster)


def test_without_the_token_nobody_gets_in(alice: User, bob: User, cluster: int) -> None:
    path = "/api/jobs/"
    assert alice.status_code(cluster, path) == 401
    assert alice.status_code(cluster, path, "Authorization: Bearer 0123456789abcdef") == 403
    assert alice.status_code(cluster, path, f"Authorization: Bearer {alice.token(cluster)}") == 200
    refused = alice.in_cluster(cluster, "RAY_AUTH_TOKEN=0123456789abcdef ray status")
    assert refused.returncode != 0
    for file in (alice.clusters / str(cluster) / "token", alice.clusters / f"{cluster}.env"):
        assert file.stat().st_mode & 0o777 == 0o600
        assert bob.type(f"cat {file}").returncode != 0


def test_one_node_beside_another_cluster_of_the_same_user(alice: User, cluster: int) -> None:
    """While it starts and is submitted to, no command line has a token on it, which all users of a machine can read."""
    seen: set[str] = set()
    is_over = Event()

    def look() -> None:
        while not is_over.is_set():
            seen.update(line for node in ("login", "node1", "node2") for line in alice.lab.processes(node))

    with ThreadPoolExecutor() as pool:
        looking = pool.submit(look)
        try:
            other = alice.sbatch(options="--nodes=1 --time=2:00:00")
            alice.cluster(other)
            # GCS knows the node before its autoscaler does, whose view this is.
            wait_until(lambda: "/3.0 CPU" in alice.in_cluster(other, "ray status").stdout, 30)
            submitted = alice.type(f"slurm/submit.sh --cluster={other} true")
        finally:
            is_over.set()
        looking.result()
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    assert any("job submit" in line for line in seen)
    tokens = [alice.token(cluster), alice.token(other)]
    assert not [line for line in seen if any(token in line for token in tokens)]
    refused = alice.type("slurm/submit.sh true")
    assert (refused.returncode, f"several clusters are up ({cluster} {other})" in refused.stderr) == (2, True)
    alice.type(f"slurm/stop.sh {other}", check=True)
    assert alice.wait_for_end(other) == ("COMPLETED", 0)


def test_a_submission_from_outside_trains_on_both_nodes(alice: User, cluster: int, undisturbed: Path) -> None:
    metrics = load_bundle(str(undisturbed)).metrics
    assert metrics["selected_by"] == "bleu_4"
    assert metrics["epoch"] in range(1, 4)
    log = (alice.lab.home("alice") / "first_run.log").read_text()
    assert "2 worker(s) on cpu, 1 of them on this node" in log
    assert "epoch 3 of 3" in log
    assert re.search(r"photo.jpg: .*(circle|bar|diamond)", log)


def test_a_submission_ends_with_its_commands_exit_code_and_sees_the_code_alone(alice: User, cluster: int) -> None:
    alice.type("mkdir -p pictures && touch pictures/large mine.py", check=True)
    done = alice.type("slurm/submit.sh bash -c 'ls -A; kill -KILL $$'")
    assert done.returncode == 128 + 9
    seen = set(done.stdout.splitlines())
    assert seen >= {"caption_ray", "jobs", "mine.py"}
    assert not seen & {"pictures", "slurm", f"caption_ray-{cluster}.log"}
    assert alice.type("slurm/submit.sh --cluster=999 true").returncode == 2


def test_clusters_of_two_users_on_the_same_nodes_do_not_see_each_other(alice: User, bob: User, cluster: int) -> None:
    other = bob.sbatch()
    ours, theirs = alice.cluster(cluster), bob.cluster(other)
    assert ours["RAY_ADDRESS"].split(":")[0] == theirs["RAY_ADDRESS"].split(":")[0]
    assert ours["RAY_ADDRESS"] != theirs["RAY_ADDRESS"]
    folders = (f"{BOBS_DISK}/cr-{other}-node1", f"/tmp/cr-{other}/ray", f"/tmp/cr-{cluster}-node1/ray")
    node1 = bob.lab.run("node1", "root", f"ls -d {' '.join(folders)}")
    assert node1.returncode == 0, node1.stderr
    for user, job, token in ((alice, cluster, bob.token(other)), (bob, other, alice.token(cluster))):
        assert user.status_code(job, "/api/jobs/", f"Authorization: Bearer {token}") == 403
        nodes = user.in_cluster(job, 'ray list nodes --format json 2> /dev/null | grep -o "\\"ALIVE\\"" | wc -l')
        assert nodes.stdout.strip() == "2", nodes


def test_stopping_a_cluster_has_its_training_save_and_leaves_others_alone(
    alice: User, bob: User, cluster: int, undisturbed: Path, train: str
) -> None:
    (other,) = (int(path.stem) for path in bob.clusters.glob("*.env"))
    home = alice.lab.home("alice")
    command = train.replace("~/data", f"{home}/data").replace("~/features", f"{home}/features")
    with ThreadPoolExecutor() as pool:
        submission = pool.submit(bob.type, f"slurm/submit.sh {command} --training.epochs 500 --name long")
        run = bob.lab.home("bob") / "runs" / "long"
        wait_until((run / "epoch_0001").exists, 240, lambda: "bob's training does not start")
        stopped = bob.type("slurm/stop.sh")
        assert stopped.returncode == 0, stopped.stderr
        assert submission.result().returncode == 75
    assert "training is told to save and stop" in bob.log(other)
    assert (run / "stopped" / "progress.json").exists()
    assert bob.wait_for_end(other) == ("COMPLETED", 0)
    bob.leaves_nothing()
    assert alice.status_code(cluster, "/api/jobs/", f"Authorization: Bearer {alice.token(cluster)}") == 200


def test_scancel_leaves_nothing(alice: User, cluster: int) -> None:
    assert len(alice.left_behind()) > 10
    alice.type(f"scancel {cluster}", check=True)
    assert alice.wait_for_end(cluster)[0] == "CANCELLED"
    alice.leaves_nothing()
    # SLURM has the script's exit code only when it has ended, or names the signal.
    codes = [(143, 0), (0, 15)]
    wait_until(lambda: alice.lab.exit_code(cluster) in codes, 40, lambda: str(alice.lab.exit_code(cluster)))
    assert "asked to end" in alice.log(cluster)
    assert alice.type("slurm/submit.sh true").returncode == 2
