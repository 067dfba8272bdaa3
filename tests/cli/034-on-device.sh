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

# made there: what the device holds is lost, and only with --force
random_bytes 4 67108864 >disk
device=$(losetup --find --show disk)
trap 'losetup -d "$device"' EXIT
link()
{
	sed "s|$device|DEVICE|g"
}
truncate -s 40M source.raw
random_bytes 5 9000000 | dd of=source.raw bs=64K seek=32 conv=notrunc status=none
imgtool create -q base.qcow2 40M
imgtool write base.qcow2 --offset 3M <small
imgtool snapshot create -q base.qcow2@one
imgtool write base.qcow2 --offset 4M <small
(
	run imgtool create "$device" 1G
	run imgtool convert -O qcow2 source.raw "$device"
	run imgtool create -f vhdx --force "$device" 1G
	run imgtool create -f raw --force "$device" 1G
) 2>&1 | link
cmp disk <(random_bytes 4 67108864)
for format in limg qcow2; do
	imgtool create -f $format --force "$device" 1G
	imgtool write --offset 1000000 "$device" <large
	imgtool read --offset 1000000 --length 20000000 "$device" | cmp - large
	imgtool read --length 1000000 "$device" | cmp - <(head -c 1000000 /dev/zero)
	imgtool check -q "$device"
	imgtool convert -O $format --force source.raw "$device"
	run imgtool compare "$device" source.raw 2>&1 | link
	imgtool check -q "$device"
	imgtool convert -q -O $format --force -c zstd --snapshots base.qcow2 "$device"
	run imgtool compare "$device" base.qcow2 2>&1 | link
	run imgtool compare "$device@one" base.qcow2@one 2>&1 | link
	imgtool check -q "$device"
	imgtool create -q --allow-refs any -f $format --force -b "$PWD/base.qcow2" "$device"
	imgtool compare --allow-refs any "$device" base.qcow2 >/dev/null
	(
		run imgtool create --allow-refs any -f $format --force -b "$device" "$device"
		run imgtool convert --allow-refs any -O $format --force "$device" "$device"
	) 2>&1 | link | sed 's/pid [0-9]*/pid PID/'
	imgtool compare --allow-refs any "$device" base.qcow2 >/dev/null
done
imgtool convert -O qcow2 --force source.raw "$device"
if command -v qemu-img >/dev/null; then
	qemu-img check -q -f qcow2 "$device"
	qemu-img compare -q -f qcow2 -F raw "$device" source.raw
fi
# what is refused at once leaves what is there
imgtool create -q marked.limg 1M
imgtool snapshot create -q marked.limg@one
cp disk before
(
	run imgtool create -f limg --force -o bogus=1 "$device" 1G
	run imgtool create -f limg --force "$device" 100T
	run imgtool create -f qcow2 --force -o cluster_size=3 "$device" 1G
	run imgtool create -f qcow2 --force -o data_file=d "$device" 1G
	run imgtool create -f qcow2 --force -o preallocation=full "$device" 1G
	run imgtool convert -q -O qcow2 --force --strict=data marked.limg "$device"
	run imgtool convert -q -O limg --force --strict=data marked.limg "$device"
) 2>&1 | link
cmp disk before
# too small for the image, or for what is in it: no image is there afterwards
losetup -d "$device"
truncate -s 8M disk
device=$(losetup --find --show disk)
(
	run imgtool convert -O qcow2 --force source.raw "$device"
	run imgtool info "$device"
	run imgtool convert -O limg --force source.raw "$device"
	run imgtool info "$device"
) 2>&1 | link | sed 's|0x[0-9a-f]*|OFFSET|g'
