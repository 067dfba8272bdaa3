# limg and qcow2 right on a block device, as on a logical volume: they grow into it, and stay whole when it is full.
need losetup
random_bytes 1 3000000 >small
random_bytes 2 20000000 >large
random_bytes 3 70000000 >too-large
for format in limg qcow2; do
	rm -f disk
	imgtool create -q -f $format image 1G
	random_bytes 4 67108864 >disk # what was there before
	device=$(losetup --find --show disk 2>/dev/null) || skip "no loop device to be had"
	trap 'losetup -d "$device"' EXIT
	dd if=image of="$device" bs=64K conv=notrunc status=none
	imgtool write "$device" <small
	imgtool snapshot create "$device@before" | sed "s|$device|DEVICE|g"
	imgtool write --offset 1M "$device" <large
	imgtool read --offset 1M --length 20000000 "$device" | cmp - large
	run imgtool check "$device" 2>&1 | sed "s|$device|DEVICE|g"
	# more than there is room for: what was there stays
	(imgtool write --offset 100M "$device" <too-large || echo "exit $?") 2>&1 | sed "s|$device|DEVICE|g; s|0x[0-9a-f]*|OFFSET|g"
	imgtool read --offset 1M --length 20000000 "$device" | cmp - large
	run imgtool check "$device" 2>&1 | sed "s|$device|DEVICE|g"
	imgtool revert "$device@before" | sed "s|$device|DEVICE|g"
	imgtool read --length 3000000 "$device" | cmp - small
	imgtool read --offset 3000000 --length 18000000 "$device" | cmp - <(head -c 18000000 /dev/zero)
	imgtool write --offset 1M "$device" <large # there is room again
	imgtool check -q "$device"
	[ $format != qcow2 ] || ! command -v qemu-img >/dev/null || qemu-img check -q -f qcow2 "$device"
	losetup -d "$device"
	trap - EXIT
	rm image
done
