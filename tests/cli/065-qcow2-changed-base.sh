# SPDX-License-Identifier: MIT
# A base that is written after an overlay was made on it: qemu-img goes on, and the overlay holds a mixture. We say so.
need qemu-img qemu-io
truncate -s 4M base.raw
for kind in qcow2 raw; do
	[[ $kind == raw ]] || imgtool create base.qcow2 4M
	qemu-img create -q -f qcow2 -b base.$kind -F $kind theirs.qcow2
	run imgtool create -f qcow2 -b base.$kind -F $kind over.qcow2
	run qemu-img check -q over.qcow2
	run imgtool check -q over.qcow2
	qemu-io -c 'write -P 3 64K 64K' over.qcow2 >/dev/null
	imgtool info --json over.qcow2 | json 'd["backing"]'
	sleep 0.02
	qemu-io -f $kind -c 'write -P 9 1M 64K' base.$kind >/dev/null
	run qemu-img check -q over.qcow2
	run qemu-io -r -c 'read -P 9 1M 64K' over.qcow2 | grep -c 'read 65536'
	run imgtool read over.qcow2 --offset 1M --length 1
	run imgtool convert over.qcow2 copy.qcow2
	run imgtool write over.qcow2 </dev/null
	# An overlay that records nothing, as others make them, is read as they do.
	imgtool read -q theirs.qcow2 --offset 1M --length 1 | od -An -tx1
	# Whoever knows that the content is right says so, and the overlay is pinned to it.
	run imgtool rebase --unsafe -b base.$kind -F $kind over.qcow2
	imgtool read -q over.qcow2 --offset 1M --length 1 | od -An -tx1
	run qemu-img check -q over.qcow2
	rm over.qcow2 theirs.qcow2
done

# What qemu-img writes of its own, a rebase onto another base, makes the record void instead of wrong.
imgtool create -f qcow2 -b base.qcow2 -F qcow2 over.qcow2
cp base.qcow2 other.qcow2
run qemu-img rebase -u -b other.qcow2 -F qcow2 over.qcow2
imgtool info --json over.qcow2 | json 'd["backing"]["name"], d["backing"]["pin"]'
run imgtool read -q over.qcow2 --length 0
