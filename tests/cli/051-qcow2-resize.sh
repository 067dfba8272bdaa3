# A new size: new bytes are zeros, over a longer parent too, in both directions and whatever the clusters; qemu-img agrees.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" | cut -d' ' -f1; }

# judged FILE RAW: whole, and the content of RAW, to both.
judged()
{
	qemu-img check -q "$1" >log 2>&1 || { cat log; fail "qemu-img check: $3"; }
	imgtool check -q "$1" || fail "check: $3"
	qemu-img compare -q -f qcow2 -F raw "$1" "$2" || fail "qemu-img reads something else: $3"
	imgtool compare -q "$1" "$2" || fail "other content: $3"
}

random_bytes 51 12000256 >base.raw
imgtool convert -q base.raw base.qcow2
for options in compat=1.1 compat=0.10 cluster_size=512 cluster_size=2M extended_l2=on; do
	# the clusters of a disk of its own, and those of an overlay shorter than its parent
	imgtool create --force -o $options own.qcow2 5000192
	imgtool create --force -o $options -b base.qcow2 over.qcow2 5000192
	truncate -s 0 own.raw && truncate -s 5000192 own.raw
	head -c 5000192 base.raw >over.raw
	for file in own over; do
		random_bytes 52 200192 | imgtool write -q $file.qcow2 --offset 4800000
		random_bytes 52 200192 | dd of=$file.raw bs=4800000 seek=1 conv=notrunc status=none
		for size in 5000704 9M 7000064 40M 4M 4100096 80M 20M; do
			imgtool resize -q --shrink $file.qcow2 $size
			truncate -s "$(imgtool info --json $file.qcow2 | json 'd["virtual_size"]')" $file.raw
			judged $file.qcow2 $file.raw "$file $options $size"
			[[ $size == 7000064 ]] || continue
			random_bytes 53 300000 | imgtool write -q $file.qcow2 --offset 6500000
			random_bytes 53 300000 | dd of=$file.raw bs=6500000 seek=1 conv=notrunc status=none
			judged $file.qcow2 $file.raw "$file $options, written at $size"
		done
		imgtool resize -q $file.qcow2 3G
		qemu-img check -q $file.qcow2 || fail "3G"
		imgtool resize -q --shrink $file.qcow2 20M
		judged $file.qcow2 $file.raw "$file $options, back from 3G"
	done
	echo "$options: done"
done
run imgtool resize own.qcow2 1M
# Shrinking gives space back: what is written next does not make the file longer.
imgtool create --force b.qcow2 20M
random_bytes 54 16000000 | imgtool write -q b.qcow2 --offset 0
imgtool resize -q --shrink b.qcow2 1M
imgtool resize -q b.qcow2 20M
before=$(stat -c %s b.qcow2)
random_bytes 55 12000000 | imgtool write -q b.qcow2 --offset 4M
(($(stat -c %s b.qcow2) <= before + (1 << 20))) || fail "the file grew from $before to $(stat -c %s b.qcow2) bytes"

# Snapshots keep their size; version 2 cannot say it.
imgtool create --force s.qcow2 8M
random_bytes 56 8388608 | imgtool write -q s.qcow2 --offset 0
imgtool snapshot create s.qcow2@eight
want=$(digest s.qcow2@eight)
run imgtool resize s.qcow2 24M
run imgtool resize --shrink s.qcow2 2M
qemu-img check -q s.qcow2 || fail "with a snapshot"
same "the snapshot" "$(digest s.qcow2@eight)" "$want"
qemu-img snapshot -a eight s.qcow2
same "the snapshot, by qemu-img" "$(digest s.qcow2)" "$want"
imgtool create --force -o compat=0.10 old.qcow2 8M
imgtool snapshot create old.qcow2@a
run imgtool resize old.qcow2 9M
run imgtool amend -o compat=1.1 old.qcow2
run imgtool resize old.qcow2 9M
qemu-img check -q old.qcow2 || fail "raised with a snapshot"
same "size of the snapshot" "$(imgtool snapshot list --json old.qcow2 | json '[s["virtual_size"] for s in d["snapshots"]]')" '[8388608]'
