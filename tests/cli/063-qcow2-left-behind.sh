# SPDX-License-Identifier: MIT
# What a conversion leaves behind: qemu-img drops snapshots and bitmaps without a word. We say so, and keep them when asked.
need qemu-img qemu-io
imgtool create a.qcow2 4M
imgtool bitmap add a.qcow2 backup
imgtool bitmap add --disabled -g 4K a.qcow2 fine
qemu-io -c 'write -P 1 0 1M' a.qcow2 >/dev/null
qemu-img snapshot -c first a.qcow2
qemu-io -c 'write -P 2 2M 64K' a.qcow2 >/dev/null
imgtool bitmap merge a.qcow2 fine backup

run qemu-img convert -O qcow2 a.qcow2 theirs.qcow2
qemu-img info --output=json theirs.qcow2 | json 'd.get("snapshots"), d["format-specific"]["data"].get("bitmaps")'
run imgtool convert a.qcow2 ours.qcow2
qemu-img info --output=json ours.qcow2 | json 'd.get("snapshots"), d["format-specific"]["data"].get("bitmaps")'
run imgtool convert -q --force a.qcow2 ours.qcow2

run imgtool convert --snapshots --bitmaps a.qcow2 all.qcow2
qemu-img info --output=json all.qcow2 | json '[s["name"] for s in d["snapshots"]], d["format-specific"]["data"]["bitmaps"]'
run qemu-img check -q all.qcow2
run qemu-img compare -q a.qcow2 all.qcow2
same snapshot "$(imgtool checksum -q all.qcow2@first | cut -d' ' -f1)" "$(imgtool checksum -q a.qcow2@first | cut -d' ' -f1)"
for name in backup fine; do
	imgtool map --bitmap "$name" a.qcow2 >have
	imgtool map --bitmap "$name" all.qcow2 | diff have - || fail "$name differs"
	cat have
done
run imgtool convert --bitmaps a.qcow2 bitmaps.qcow2
imgtool bitmap list --json bitmaps.qcow2 | json '[(b["name"], b["state"], b["dirty_bytes"]) for b in d["bitmaps"]]'

# Where they cannot be kept, asking for them is an error, and nothing is made.
run imgtool convert --bitmaps a.qcow2 a.limg
run imgtool convert --bitmaps a.qcow2 a.raw
run imgtool convert a.qcow2 a.limg
run ls
