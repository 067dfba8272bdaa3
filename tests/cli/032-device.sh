# convert into a block device that is there: its size counts, its rest stays, and nobody else may have it.
need losetup
truncate -s 8M disk
random_bytes 1 8388608 >disk
device=$(losetup --find --show disk 2>/dev/null) || skip "no loop device to be had"
trap 'losetup -d "$device"' EXIT
link()
{
	sed "s|$device|DEVICE|g"
}
truncate -s 5M a.raw
random_bytes 2 2000000 | dd of=a.raw bs=64K seek=16 conv=notrunc status=none
imgtool convert a.raw a.limg
(
	run imgtool convert a.limg "$device"
	run imgtool convert -O vdi --force a.limg "$device"
	run imgtool convert -O raw a.limg "$device"
	run imgtool convert -O raw --force --snapshots a.limg "$device"
	truncate -s 9M large.raw
	run imgtool convert -O raw --force large.raw "$device"
) 2>&1 | link
cmp "$device" <(random_bytes 1 8388608)
imgtool convert -O raw --force a.limg "$device"
cmp -n $((5 << 20)) "$device" a.raw
cmp -i $((5 << 20)) "$device" <(random_bytes 1 8388608)
# a device somebody has
/usr/bin/python3 -c 'import os, sys, time
fd = os.open(sys.argv[1], os.O_RDONLY | os.O_EXCL); open("held", "w"); time.sleep(60)' "$device" &
holder=$!
wait_for 10 test -e held
run imgtool convert -O raw --force a.limg "$device" 2>&1 | link
kill $holder
wait $holder || true
run imgtool compare -f raw "$device" a.raw 2>&1 | link
# a parent whose name in /dev is made anew, as at each start of the machine, is the same parent
imgtool create -q --allow-refs any -b "$device" -F raw over.qcow2
imgtool create -q --allow-refs any -b "$device" -F raw over.limg
touch "$device"
run imgtool compare --allow-refs any over.qcow2 over.limg
imgtool read --allow-refs any --length 5M over.limg | cmp - a.raw
