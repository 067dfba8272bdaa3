# SPDX-License-Identifier: MIT
# VMDK over VMDK: made, written, committed, rebased, flattened; read by qemu-img and the reader; parents that are missing or others.
need qemu-img
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vmdk_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vmdk_reader.py" "$@"; }
judged()
{
	expect 0 imgtool check -q "$1"
	vmdk_reader verify "$1" || fail "the reader finds fault with $1"
	same "the reader's content of $1" "$(vmdk_reader hash "$1" | cut -d' ' -f1)" "$(digest "$1")"
	qemu-img convert -f vmdk -O raw "$1" judge.raw
	same "qemu-img's content of $1" "$(digest -f raw judge.raw)" "$(digest "$1")"
	rm judge.raw
}
imgtool create -q -f vmdk base.vmdk 12M
random_bytes 100 3000000 >junk
imgtool write -q base.vmdk --offset 700000 <junk
for options in '' zeroed_grain=on,grain_size=4K subformat=twoGbMaxExtentSparse,extent_size=5M; do
	rm -f top*.vmdk
	imgtool create -q -f vmdk ${options:+-o $options} -b base.vmdk top.vmdk
	same "an empty overlay" "$(digest top.vmdk)" "$(digest base.vmdk)"
	head -c 500000 junk | imgtool write -q top.vmdk --offset 1234567 2>log || fail "$(cat log)"
	head -c 500000 junk | imgtool write -q top.vmdk --offset 5000000 2>log || fail "$(cat log)"
	judged top.vmdk
done
imgtool info --chain --json top.vmdk 2>/dev/null | json '[(i["format"], i["format_specific"]["subformat"]) for i in d["chain"]] if "chain" in d else "no chain"'
before=$(digest top.vmdk)
imgtool commit -q top.vmdk
judged base.vmdk
judged top.vmdk
same "content below, committed" "$(digest base.vmdk)" "$before"
head -c 3000 junk | imgtool write -q top.vmdk --offset 11M 2>log
before=$(digest top.vmdk)

# Another parent of the same content, and none.
imgtool convert -q -O vmdk base.vmdk other.vmdk
imgtool rebase -q -b other.vmdk top.vmdk
judged top.vmdk
same "rebased" "$(digest top.vmdk)" "$before"
mkdir sub
mv other.vmdk sub
run imgtool checksum top.vmdk
mv sub/other.vmdk .
head -c 3000 junk | imgtool write -q other.vmdk --offset 0
run imgtool checksum top.vmdk
run imgtool info --chain top.vmdk
imgtool rebase -q --unsafe -b base.vmdk top.vmdk
same "put right" "$(digest top.vmdk)" "$before"
imgtool flatten -q top.vmdk
judged top.vmdk
rm base.vmdk
same "alone" "$(digest top.vmdk)" "$before"

# qemu-img's overlay, and a path of another host, whose last part is here.
imgtool convert -q -O vmdk top.vmdk base.vmdk
qemu-img create -q -f vmdk -b base.vmdk -F vmdk q.vmdk
same "qemu-img's overlay" "$(digest q.vmdk)" "$before"
head -c 90000 junk | imgtool write -q q.vmdk --offset 3M 2>log || fail "$(cat log)"
judged q.vmdk
imgtool create -q -f vmdk -o subformat=twoGbMaxExtentSparse -b base.vmdk far.vmdk
sed -i 's|^parentFileNameHint=.*|parentFileNameHint="/vmfs/volumes/1/base.vmdk"|' far.vmdk
same "a path of another host" "$(digest far.vmdk)" "$(digest base.vmdk)"
sed -i 's|^parentFileNameHint=.*|parentFileNameHint="C:\\\\disks\\\\base.vmdk"|' far.vmdk
same "a path of Windows" "$(digest far.vmdk)" "$(digest base.vmdk)"
sed -i 's|^parentCID=.*|parentCID=00000000|' far.vmdk
run imgtool checksum far.vmdk
sed -i '/^parentFileNameHint/d' far.vmdk
run imgtool checksum far.vmdk

# What cannot be.
imgtool create -q raw.img 12M -f raw
run imgtool create -f vmdk -b raw.img n.vmdk
run imgtool create -f vmdk -o subformat=monolithicFlat -b base.vmdk n.vmdk
run imgtool create -f vmdk -o subformat=streamOptimized -b base.vmdk n.vmdk
