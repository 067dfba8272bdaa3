# SPDX-License-Identifier: MIT
# An encrypted image: its metadata is not encrypted and is shown; its content is refused.
need qemu-img
for kind in luks aes; do
	qemu-img create -q --object secret,id=s,data=x -f qcow2 -o encrypt.format=$kind,encrypt.key-secret=s $kind.qcow2 8M 2>/dev/null
	run imgtool info $kind.qcow2 | sed -n -e '/^format:/p' -e '/^virtual size:/p' -e '/^encr/p'
	imgtool info --json $kind.qcow2 | json '[d["encrypted"], d["format_specific"]["encryption"], d["virtual_size"]]'
	run imgtool snapshot list $kind.qcow2
	run imgtool bitmap list $kind.qcow2
	run imgtool read $kind.qcow2 --length 1
	run imgtool map $kind.qcow2
	run imgtool checksum $kind.qcow2
	run imgtool convert $kind.qcow2 plain.qcow2
	run imgtool write $kind.qcow2 </dev/null
	run imgtool create -b $kind.qcow2 -F qcow2 over.qcow2
	run imgtool snapshot create $kind.qcow2@s
	run imgtool bitmap add $kind.qcow2 b
	run imgtool info --chain $kind.qcow2
done
imgtool create plain.qcow2 1M
imgtool info --json plain.qcow2 | json '[d["encrypted"], "encryption" in d["format_specific"]]'
