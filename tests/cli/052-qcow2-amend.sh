# amend changes what can be changed in place, keeps the content, and refuses the rest before anything is changed.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" | cut -d' ' -f1; }
judged()
{
	qemu-img check -q "$1" >log 2>&1 || { cat log; fail "qemu-img check"; }
	imgtool check -q "$1"
	same content "$(digest "$1")" "$want"
	qemu-img convert -O raw "$1" judge.raw
	same "qemu-img's content" "$(digest -f raw judge.raw)" "$want"
	qemu-img info --output=json "$1" | json 'd["format-specific"]["data"]["compat"], d["format-specific"]["data"].get("lazy-refcounts"), d["virtual-size"], d.get("backing-filename"), d.get("backing-filename-format")'
}

random_bytes 52 3000000 >base.raw
imgtool convert -q base.raw base.qcow2
imgtool create -b base.qcow2 a.qcow2 8M
random_bytes 53 400000 | imgtool write -q a.qcow2 --offset 1M
# zeros that version 2 cannot say: over the parent's data, in a part of a cluster's run, with and without a cluster behind them
qemu-io -f qcow2 -c 'write -q -z 128k 256k' -c 'write -q -z 1M 64k' -c 'discard -q 2M 64k' a.qcow2 >log || fail "$(cat log)"
want=$(digest a.qcow2)
run imgtool amend -o lazy_refcounts=on a.qcow2
judged a.qcow2
run imgtool amend -o compat=0.10 a.qcow2
judged a.qcow2
imgtool map --json a.qcow2 | json 'any(e["zero"] and e["depth"] == 0 for e in d["extents"] if e["start"] < 3000000)'
run imgtool amend -o lazy_refcounts=on a.qcow2
run imgtool amend -o compat=v3,lazy_refcounts=on a.qcow2
judged a.qcow2
imgtool flatten -q a.qcow2
run imgtool amend -o compat=0.10 a.qcow2
judged a.qcow2
run imgtool amend -o compat=1.1,size=9M a.qcow2
want=$(digest a.qcow2)
judged a.qcow2
# without a parent zeros become nothing at all
qemu-io -f qcow2 -c 'write -q -z 0 3M' a.qcow2 >log
want=$(digest a.qcow2)
run imgtool amend -o compat=0.10 a.qcow2
judged a.qcow2

# Snapshots: their zeros cannot go.
imgtool amend -o compat=1.1 a.qcow2
qemu-io -f qcow2 -c 'write -q -z 5M 1M' -c 'write -q -z 128k 64k' a.qcow2 >log
imgtool snapshot create a.qcow2@a
want=$(digest a.qcow2)
run imgtool amend -o compat=0.10 a.qcow2
judged a.qcow2

# Another parent on record: nothing is copied, what is on record of the old one is void.
imgtool create -b base.qcow2 b.qcow2
imgtool info b.qcow2 | grep backing
run imgtool amend -o backing_file=./base.qcow2,backing_fmt=qcow2 b.qcow2
imgtool info b.qcow2 | grep backing
want=$(digest base.qcow2)
judged b.qcow2
run imgtool amend -o backing_file=gone.raw,backing_fmt=raw b.qcow2
imgtool info b.qcow2 | grep backing
run imgtool amend -o backing_file= b.qcow2
imgtool info b.qcow2 | grep -c backing || true
run imgtool amend -o backing_fmt=raw b.qcow2

for options in cluster_size=4K extended_l2=on compression_type=zstd refcount_bits=8 data_file=x data_file_raw=on \
	preallocation=full nonsense=1 size=1M compat=0.9 size=5Q size= lazy_refcounts=perhaps encryption=on; do
	sum=$(sha b.qcow2)
	run imgtool amend -o $options b.qcow2
	same "$options: the file" "$(sha b.qcow2)" "$sum"
done
for options in refcount_bits=1 extended_l2=on compression_type=zstd; do
	imgtool create --force -o $options c.qcow2 1M
	run imgtool amend -o compat=0.10 c.qcow2
done
run imgtool amend c.qcow2
imgtool create c.limg 1M
run imgtool amend -o block_size=16K c.limg

# What there is to change is asked as in create.
imgtool create -q -f qcow2 asked.qcow2 1M
imgtool amend -o help asked.qcow2 >have
imgtool create -f qcow2 -o help | cmp - have
run imgtool amend -o help nowhere.qcow2
