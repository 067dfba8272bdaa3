# qcow2 made by us is whole to qemu-img, whatever the options, and both tell the same of it; measure is qemu-img's.
need qemu-img
run imgtool create a.qcow2 16M
run imgtool info a.qcow2
run imgtool info --json a.qcow2
run imgtool create -f qcow2 -o help
run imgtool create a.qcow2 16M

qemu_size() { qemu-img info --output=json "$1" | json 'd["virtual-size"]'; }
qemu_options()
{
	qemu-img info --output=json "$1" | json 'd["cluster-size"], [d["format-specific"]["data"].get(k) for k in ("compat", "refcount-bits", "lazy-refcounts", "extended-l2", "compression-type", "data-file-raw", "corrupt")]'
}
our_options()
{
	imgtool info --json "$1" | json 'd["block_size"], [d["format_specific"].get(k) for k in ("compat", "refcount_bits", "lazy_refcounts", "extended_l2", "compression_type", "data_file_raw")]'
}
ours() { imgtool measure -O qcow2 --json "$@" | json 'd["required_bytes"], d["fully_allocated_bytes"]'; }
theirs() { qemu-img measure -O qcow2 --output=json "$@" | json 'd["required"], d["fully-allocated"]'; }

for options in compat=0.10 compat=1.1 cluster_size=512 cluster_size=2M refcount_bits=1 refcount_bits=64 lazy_refcounts=on \
	extended_l2=on compression_type=zstd compression=zstd preallocation=metadata preallocation=falloc preallocation=full \
	preallocation=metadata,cluster_size=512,refcount_bits=2 compat=0.10,preallocation=metadata,cluster_size=4K \
	extended_l2=on,cluster_size=16K,refcount_bits=32,compression_type=zstd,lazy_refcounts=on,preallocation=metadata; do
	for size in 0 512 5000192 40M; do
		rm -f b.qcow2
		imgtool create -o "$options" b.qcow2 $size || fail "$options $size"
		qemu-img check -q b.qcow2 >log 2>&1 || { cat log; fail "qemu-img check: $options $size"; }
		imgtool check -q b.qcow2 || fail "check: $options $size"
		same "size with $options" "$(imgtool info --json b.qcow2 | json 'd["virtual_size"]')" "$(qemu_size b.qcow2)"
		case $options in compression=*) continue ;; esac
		# Our disk without size has an L1 table of one entry, QEMU's has none.
		want="($(stat -c %s b.qcow2), $(stat -c %s b.qcow2))"
		[[ $size == 0 ]] || want=$(theirs -o "$options" --size $size)
		same "measure with $options $size" "$(ours -o "$options" --size $size)" "$want"
	done
	qemu-img convert -O raw b.qcow2 zero.raw
	cmp zero.raw <(head -c 40M /dev/zero) || fail "$options: not empty"
	echo "$options"
	qemu_options b.qcow2
	our_options b.qcow2
done
# Preallocated space is there.
(($(stat -c %b b.qcow2) * 512 < 1 << 20)) || fail "metadata took $(stat -c %b b.qcow2) blocks"
for how in falloc full; do
	imgtool create --force -o preallocation=$how b.qcow2 8M
	(($(stat -c %b b.qcow2) * 512 >= 8 << 20)) || fail "$how took $(stat -c %b b.qcow2) blocks"
done

# measure of data
truncate -s 40M a.raw
random_bytes 50 3000000 | dd of=a.raw bs=64K seek=2500000 oflag=seek_bytes conv=notrunc status=none
random_bytes 51 5000 | dd of=a.raw bs=64K seek=30000000 oflag=seek_bytes conv=notrunc status=none
for options in compat=1.1 cluster_size=512 cluster_size=2M,refcount_bits=64 extended_l2=on preallocation=full; do
	same "measure of data with $options" "$(ours -o $options -f raw a.raw)" "$(theirs -o $options -f raw a.raw)"
done

# What qemu-img refuses is refused.
for options in cluster_size=256 cluster_size=4M cluster_size=5000 refcount_bits=3 refcount_bits=128 compat=0.9 \
	compat=0.10,refcount_bits=8 compat=0.10,lazy_refcounts=on compat=0.10,extended_l2=on compat=0.10,compression_type=zstd \
	compat=0.10,data_file=x extended_l2=on,cluster_size=8K data_file_raw=on preallocation=some compression_type=lzo; do
	run imgtool create -o $options c.qcow2 1M
	rm -f c.raw
	! qemu-img create -q -f qcow2 -o $options c.raw 1M 2>log || fail "qemu-img makes $options"
done
run imgtool create -o compression=zstd:9 c.qcow2 1M
run imgtool create -o cluster_size=512 c.qcow2 1T
run imgtool measure -O qcow2 -o cluster_size=512 --size 1T
[[ ! -e c.qcow2 ]] || fail "a refused image was left behind"

# convert: -c is the type of compression.
{ yes "compressible text" || true; } | head -c 9000000 >text.raw
for codec in zlib zstd; do
	run imgtool convert -c $codec text.raw text.qcow2 --force
	qemu-img check -q text.qcow2 || fail "qemu-img check: $codec"
	qemu-img compare -q -f raw text.raw text.qcow2 || fail "qemu-img reads $codec otherwise"
	imgtool info --json text.qcow2 | json 'd["format_specific"]["compression_type"], d["file_size"] < 2000000'
done
