# QEMU's name of VHD is vpc: that is what stands in a qcow2, both ways.
need qemu-img
digest() { imgtool checksum -q "$1" 2>/dev/null | cut -d" " -f1; }
imgtool create -q -f vhd p.vhd 1M
random_bytes 1 300000 | imgtool write -q p.vhd --offset 100000
imgtool create -q -b p.vhd ours.qcow2
imgtool create -q -o compat=0.10 -b p.vhd old.qcow2
imgtool info --json ours.qcow2 | json 'd["backing"]["format"]'
qemu-img info --output=json ours.qcow2 | json 'd["backing-filename-format"]'
qemu-img create -q -f qcow2 -b p.vhd -F vpc theirs.qcow2
imgtool info --json theirs.qcow2 | json 'd["backing"]["format"]'
for image in ours old theirs; do
	same $image "$(digest $image.qcow2)" "$(digest p.vhd)"
	qemu-img check -q $image.qcow2
	qemu-img convert -O raw $image.qcow2 $image.raw
	same "$image by qemu-img" "$(sha $image.raw)" "$(digest p.vhd)"
	echo more | imgtool write -q $image.qcow2 --offset 5000
	imgtool rebase -q -b p.vhd $image.qcow2
	qemu-img check -q $image.qcow2
done
# A protocol's name says raw as well.
truncate -s 1M r.img
qemu-img create -q -f qcow2 -b r.img -F raw f.qcow2
qemu-img rebase -u -b r.img -F file f.qcow2
same raw "$(digest f.qcow2)" "$(digest r.img)"
