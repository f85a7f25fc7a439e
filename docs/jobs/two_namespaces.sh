#!/bin/sh
# Two "machines" on one Linux machine: two network namespaces, and a link. As root, from the top folder:
#
#   sh docs/jobs/two_namespaces.sh block_parallel                       # or ddp; further options go to fit
#   RATE=1gbit sh docs/jobs/two_namespaces.sh block_parallel
#   CUT=40 sh docs/jobs/two_namespaces.sh ddp                           # after 40 s the link is cut for 40 s: both ends
#                                                                       # say so, and go on when it is there again
#
# On two real machines each runs the line of torchrun below, with the address of the first one, its own one, and the
# name of its network's interface; --rdzv-conf may be left out where the first one's address is its host's name.
set -eu
strategy=$1
shift

remove() {
    for machine in 0 1; do
        ip netns pids machine$machine | xargs -r kill -9
        ip netns delete machine$machine
    done
}
trap remove EXIT
trap 'exit 143' INT TERM
ip netns add machine0
ip netns add machine1
ip -n machine0 link add link0 type veth peer name link0 netns machine1
for machine in 0 1; do
    ip -n machine$machine address add 10.77.0.$((machine + 1))/24 dev link0
    ip -n machine$machine link set lo up
    ip -n machine$machine link set link0 up
    tc -n machine$machine qdisc add dev link0 root tbf rate "${RATE:-10gbit}" burst 1mb latency 50ms
done

export GLOO_SOCKET_IFNAME=link0 OMP_NUM_THREADS=1
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # a new meeting place after every loss
on_machine() {
    number=$1 is_first=$2
    shift 2
    ip netns exec "machine$number" torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 \
        --rdzv-backend c10d --rdzv-id two_machines --rdzv-endpoint 10.77.0.1:29400 --rdzv-conf "is_host=$is_first" \
        --local-addr "10.77.0.$((number + 1))" \
        -m experiments fit --config decoupled_greedy/digits --name "two_machines_$strategy" --ckpt_path auto \
        --trainer.accelerator cpu --trainer.num_nodes 2 --trainer.devices 1 --trainer.strategy "$strategy" "$@"
}

on_machine 0 true "$@" &
first=$!
on_machine 1 false "$@" &
second=$!
if [ -n "${CUT:-}" ]; then
    sleep "$CUT"
    ip -n machine0 link set link0 down
    echo "$(date +%T) The link is cut."
    sleep 40
    ip -n machine0 link set link0 up
    echo "$(date +%T) The link is there again."
fi
ends=0
wait $first || ends=$?
wait $second || ends=$?
exit $ends
