# SPDX-License-Identifier: MIT
# Two snapshots of one name: qemu-img makes them, and then reverts to, or deletes, whichever comes first. We refuse.
need qemu-img qemu-io
qemu-img create -q -f qcow2 theirs.qcow2 1M
run qemu-img snapshot -c day theirs.qcow2
qemu-io -c 'write -P 7 0 64K' theirs.qcow2 >/dev/null
run qemu-img snapshot -c day theirs.qcow2
qemu-img snapshot -l theirs.qcow2 | grep -c day

imgtool create ours.qcow2 1M
run imgtool snapshot create ours.qcow2@day
qemu-io -c 'write -P 7 0 64K' ours.qcow2 >/dev/null
run imgtool snapshot create ours.qcow2@day
run imgtool snapshot create ours.qcow2@night
run imgtool snapshot rename ours.qcow2@night day
run qemu-img snapshot -l ours.qcow2 | awk '/day|night/ { print $2 }'
run qemu-img check -q ours.qcow2

# What qemu-img made is still of use: both can be told apart, and removed one by one.
imgtool snapshot list --json theirs.qcow2 | json '[(s["id"], s["name"]) for s in d["snapshots"]]'
run imgtool snapshot create theirs.qcow2@day
run imgtool snapshot delete theirs.qcow2@day
imgtool snapshot list --json theirs.qcow2 | json '[s["name"] for s in d["snapshots"]]'
run qemu-img check -q theirs.qcow2
