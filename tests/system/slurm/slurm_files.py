"""The files of the lab (see slurm_lab.py): SLURM's settings, its machines' names, its users."""

import os
from pathlib import Path

NETWORK = "10.77.0"
USERS = {"alice": 62001, "bob": 62002}
NUM_NODES = 2
CPUS_PER_NODE, MEMORY_MB, GPUS_PER_NODE = 16, 16384, 4
CGROUPS = Path("/sys/fs/cgroup")


def address_of(machine: str) -> str:
    """Return the address of `login`, `node1`, ..."""
    return f"{NETWORK}.{10 + int(machine.removeprefix('node') if machine != 'login' else 0)}"


def write_files(folder: Path, homes: dict[str, Path], *, has_cgroups: bool) -> None:
    """Write the settings of SLURM and of its machines into an empty folder, and make the users' home folders."""
    for name in ("log", "controller", "devices", "machines"):
        (folder / name).mkdir()
    for number in range(GPUS_PER_NODE):  # SLURM asks that GPUs be device files; to these one may write
        os.mknod(folder / "devices" / f"gpu{number}", 0o666 | 0o020000, os.makedev(1, 3))
    machines = ["login", *(f"node{number}" for number in range(1, NUM_NODES + 1))]
    hosts = ["127.0.0.1 localhost", *(f"{address_of(name)} {name}" for name in machines)]
    (folder / "hosts").write_text("\n".join([*hosts, ""]))
    passwd, group = Path("/etc/passwd").read_text(), Path("/etc/group").read_text()
    for user, number in USERS.items():
        passwd += f"{user}:x:{number}:{number}::{homes[user]}:/bin/bash\n"
        group += f"{user}:x:{number}:\n"
        homes[user].mkdir(parents=True, mode=0o711)
        os.chown(homes[user], number, number)
    (folder / "passwd").write_text(passwd)
    (folder / "group").write_text(group)
    (folder / "gres.conf").write_text(f"Name=gpu Type=p100 File={folder}/devices/gpu[0-{GPUS_PER_NODE - 1}]\n")
    limits = "ConstrainRAMSpace=yes\nConstrainSwapSpace=no\nConstrainCores=no\nConstrainDevices=no\n"
    (folder / "cgroup.conf").write_text(
        f"CgroupPlugin=cgroup/v1\n{f'CgroupMountpoint={CGROUPS}' if has_cgroups else ''}\n"
        f"{limits if has_cgroups else ''}"
    )
    tracking = "cgroup" if has_cgroups else "linuxproc"
    settings = {
        "ClusterName": "lab",
        "SlurmctldHost": f"login({address_of('login')})",
        "SlurmUser": "root",
        "AuthInfo": "cred_expire=5",  # a job that is put back into the queue waits twice as long
        "StateSaveLocation": f"{folder}/controller",
        "SlurmdSpoolDir": f"{folder}/machines/%n/spool",
        "SlurmctldPidFile": f"{folder}/slurmctld.pid",
        "SlurmdPidFile": f"{folder}/machines/%n/slurmd.pid",
        "SlurmctldLogFile": f"{folder}/log/slurmctld.log",
        "SlurmdLogFile": f"{folder}/log/slurmd-%n.log",
        "ProctrackType": f"proctrack/{tracking}",
        "TaskPlugin": "task/cgroup" if has_cgroups else "task/none",
        "JobAcctGatherType": "jobacct_gather/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0",
        "GresTypes": "gpu",
        "ReturnToService": "2",
        "SlurmdParameters": "config_overrides",
        "SlurmdTimeout": "15",
        "KillWait": "30",
        "OverTimeLimit": "0",
        "JobRequeue": "1",
    }
    nodes = [f"NodeName={name} NodeAddr={address_of(name)}" for name in machines[1:]]
    hardware = f"CPUs={CPUS_PER_NODE} RealMemory={MEMORY_MB} Gres=gpu:p100:{GPUS_PER_NODE}"
    lines = [
        *(f"{name}={value}" for name, value in settings.items()),
        f"NodeName=DEFAULT {hardware} State=UNKNOWN",
        *nodes,
        "PartitionName=work Nodes=ALL Default=YES MaxTime=72:00:00 State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join([*lines, ""]))
