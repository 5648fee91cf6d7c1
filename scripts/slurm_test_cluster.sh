#!/usr/bin/env bash
# A real SLURM of one node on this machine, for tests: munge, slurmctld and slurmd, without systemd.
#
#   scripts/slurm_test_cluster.sh install        Debian's slurm-wlm and munge, by apt-get (root)
#   scripts/slurm_test_cluster.sh start FOLDER   start it; prints the path of its slurm.conf
#   scripts/slurm_test_cluster.sh stop FOLDER    end its jobs and daemons
#
#   export SLURM_CONF=$(scripts/slurm_test_cluster.sh start /tmp/slurm)
#   sinfo
#   FRANCA_SLURM=$SLURM_CONF .venv/bin/python -m pytest tests/launch
#
# Everything lies in FOLDER: configuration, key, sockets, state, logs. Jobs run as root, also in a container, since
# processes are followed through /proc and no control group is asked for. Not for work: the node claims more CPUs than
# it may have, and there are no limits on memory.
set -euo pipefail

die() {
    echo "slurm_test_cluster: $*" >&2
    exit 1
}

usage() {
    sed -n '2,/^$/{/^#/s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

install() {
    if command -v slurmctld slurmd munged >/dev/null; then
        return
    fi
    command -v apt-get >/dev/null || die "needs apt-get, to install slurm-wlm and munge"
    [[ $EUID -eq 0 ]] || die "needs root, to install slurm-wlm and munge"
    export DEBIAN_FRONTEND=noninteractive
    timeout 120 apt-get update -qq >&2 || die "apt-get update failed"
    timeout 300 apt-get install -y -qq --no-install-recommends slurm-wlm munge >&2 || die "slurm-wlm and munge can't be installed"
}

free_ports() { # two TCP ports that nobody listens on
    "${PYTHON:-python3}" - <<'PYTHON'
import socket
sockets = [socket.socket() for _ in range(2)]
for one in sockets:
    one.bind(("", 0))
print(*(one.getsockname()[1] for one in sockets))
PYTHON
}

write_config() { # write_config FOLDER HOST CONTROLLER_PORT NODE_PORT
    cat >"$1/slurm.conf" <<CONF
ClusterName=franca-test
SlurmctldHost=$2
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$3
SlurmdPort=$4
AuthType=auth/munge
CredType=cred/munge
# The last also is the time that a requeued job waits before it starts again (120 seconds by default).
AuthInfo=socket=$1/munge.socket,cred_expire=5
StateSaveLocation=$1/state
SlurmdSpoolDir=$1/spool
SlurmctldPidFile=$1/slurmctld.pid
SlurmdPidFile=$1/slurmd.pid
SlurmctldLogFile=$1/slurmctld.log
SlurmdLogFile=$1/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=5
ReturnToService=2
KillWait=60
SlurmdParameters=config_overrides
NodeName=$2 NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=test Nodes=$2 Default=YES MaxTime=INFINITE State=UP
CONF
}

start_munge() { # start_munge FOLDER
    head -c 1024 /dev/urandom >"$1/munge.key"
    chmod 400 "$1/munge.key"
    munged --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munge.pid" \
        --log-file="$1/munge.log" --seed-file="$1/munge.seed" 2>>"$1/start.log"
}

wait_for_node() {
    for _ in $(seq 60); do
        if [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]]; then
            return
        fi
        sleep 0.5
    done
    return 1
}

start() { # start FOLDER
    [[ $EUID -eq 0 ]] || die "needs root: slurmd starts jobs for others"
    command -v slurmctld slurmd munged >/dev/null || die "SLURM is not installed: scripts/slurm_test_cluster.sh install"
    [[ ! -e "$1/slurm.conf" ]] || die "$1 already holds a cluster: stop it, or name another folder"
    mkdir -p "$1"/{state,spool}
    local folder host controller_port node_port
    folder=$(cd "$1" && pwd)
    host=$(hostname -s)
    read -r controller_port node_port < <(free_ports)
    write_config "$folder" "$host" "$controller_port" "$node_port"
    export SLURM_CONF="$folder/slurm.conf"
    trap 'tail -n 20 "$folder"/*.log >&2; stop "$folder"; die "the cluster does not start; its logs are above"' ERR
    start_munge "$folder"
    slurmctld >>"$folder/start.log" 2>&1 </dev/null
    slurmd >>"$folder/start.log" 2>&1 </dev/null
    wait_for_node
    trap - ERR
    echo "$SLURM_CONF"
}

end_process() { # end_process PID_FILE: ask, wait, insist
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    kill "$pid" 2>/dev/null || return 0
    for _ in $(seq 50); do
        kill -0 "$pid" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -KILL "$pid" 2>/dev/null || true
}

stop() { # stop FOLDER
    [[ -e "$1/slurm.conf" ]] || return 0
    export SLURM_CONF="$1/slurm.conf"
    scancel --state=PENDING --user=root 2>/dev/null || true
    # By SLURM's way they would have KillWait seconds; without slurmd they would be nobody's.
    scontrol listpids 2>/dev/null | awk 'NR > 1 && $1 > 1 { print $1 }' | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
    scancel --user=root 2>/dev/null || true
    for _ in $(seq 60); do
        [[ -n $(squeue --noheader 2>/dev/null) ]] || break
        sleep 0.5
    done
    for daemon in slurmd slurmctld munge; do
        end_process "$1/$daemon.pid"
    done
    rm -rf "$1"/{slurm.conf,munge.key,munge.seed,state,spool} # the logs stay
}

case "${1:-} $#" in
"install 1") install ;;
"start 2") start "$2" ;;
"stop 2") stop "$2" ;;
*) usage ;;
esac
