# SPDX-License-Identifier: MIT
# VDI: made, read and written in turns with qemu-img, which reads blocks of 1 MiB without parents; options, resize, refusals.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vdi_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vdi_reader.py" "$@"; }
judged()
{
	qemu-img check -q -f vdi "$1" >log 2>&1 || { cat log; fail "qemu-img check $1"; }
	expect 0 imgtool check -q "$1"
	vdi_reader verify "$1" || fail "the reader finds fault with $1"
	qemu-img convert -f vdi -O raw "$1" judge.raw
	same "qemu-img's content" "$(digest -f raw judge.raw)" "$(digest "$1")"
	same "the reader's content" "$(vdi_reader hash "$1" | cut -d' ' -f1)" "$(digest "$1")"
	rm judge.raw
}

run imgtool create -f vdi -o help
run imgtool create -f vdi a.vdi 20M
imgtool info --json a.vdi | json 'd["format"], d["virtual_size"], d["block_size"], d["format_specific"]["subformat"]'
judged a.vdi
random_bytes 100 3000000 >junk
imgtool write -q a.vdi --offset 1500000 <junk
before=$(imgtool info --json a.vdi | json 'd["format_specific"]["modification_uuid"]')
judged a.vdi
qemu-io -f vdi -c 'write -q -P 7 512k 3M' -c 'write -q -z 9M 2M' a.vdi >log || fail "$(cat log)"
judged a.vdi
head -c 700000 junk | imgtool write -q a.vdi --offset 18M
judged a.vdi
after=$(imgtool info --json a.vdi | json 'd["format_specific"]["modification_uuid"]')
[[ $before != "$after" ]] || fail "a write does not change the modification UUID"

# Both directions, dynamic and fixed.
for options in subformat=dynamic subformat=fixed static=on,preallocation=falloc subformat=fixed,preallocation=full align=4K; do
	imgtool convert -q -O vdi -o $options a.vdi b.vdi --force
	judged b.vdi
	same "content with $options" "$(digest b.vdi)" "$(digest a.vdi)"
done
qemu-img convert -f vdi -O vdi -o static=on a.vdi b.vdi
same "qemu-img's fixed one" "$(digest b.vdi)" "$(digest a.vdi)"
qemu-img convert -f vdi -O vdi a.vdi b.vdi
judged b.vdi
head -c 100000 junk | imgtool write -q b.vdi --offset 7777777
judged b.vdi
[[ $(imgtool info --json a.vdi | json 'd["uuid"]') != "$(imgtool info --json b.vdi | json 'd["uuid"]')" ]] || fail "one UUID twice"
imgtool convert -q -O vdi -o uuid=01234567-89ab-cdef-0123-456789abcdef,block_size=64K a.vdi c.vdi
imgtool info --json c.vdi | json 'd["uuid"] == "01234567-89ab-cdef-0123-456789abcdef", d["block_size"]'
same "smaller blocks" "$(digest c.vdi)" "$(digest a.vdi)"
imgtool amend -o uuid=11111111-89ab-cdef-0123-456789abcdef c.vdi
imgtool info --json c.vdi | json 'd["uuid"] == "11111111-89ab-cdef-0123-456789abcdef"'
run imgtool amend -o align=4K c.vdi
run imgtool measure -O vdi --size 1G
run imgtool measure -O vdi a.vdi

# Growing by the block, over the room of a map that QEMU leaves none for, and shrinking.
qemu-img create -q -f vdi d.vdi 100M
imgtool write -q d.vdi --offset 0 <junk
before=$(digest d.vdi)
for size in 100M+512 130M 300M 2G; do
	case $size in *+*) imgtool resize -q d.vdi +512 ;; *) imgtool resize -q d.vdi $size ;; esac
	expect 0 imgtool check -q d.vdi
	vdi_reader verify d.vdi || fail "after growing to $size"
	qemu-img check -q -f vdi d.vdi || fail "qemu-img after growing to $size"
	imgtool write -q d.vdi --offset 95M <junk
done
imgtool write -q d.vdi --offset 1G <junk
imgtool resize -q --shrink d.vdi 50M
judged d.vdi
[[ $(stat -c %s d.vdi) -lt 10000000 ]] || fail "the file keeps what the disk lost"
imgtool resize -q d.vdi 100M
same "content" "$(digest d.vdi)" "$before"
run imgtool resize d.vdi 10M

# A fixed one grows too.
imgtool create -q -f vdi -o subformat=fixed e.vdi 5M
imgtool write -q e.vdi --offset 3M </dev/null
imgtool resize -q e.vdi 9M
judged e.vdi
imgtool map e.vdi

# What cannot be.
run imgtool create -f vdi f.vdi 0
run imgtool create -f vdi -o block_size=1000 f.vdi 1M
run imgtool create -f vdi -o preallocation=full f.vdi 1M
run imgtool create -f vdi -o uuid=1 f.vdi 1M
run imgtool create -f vdi -o subformat=undo f.vdi 1M
run imgtool create -f vdi -o cluster_size=4K f.vdi 1M
run imgtool create -f vdi -o block_size=512 f.vdi 1P
run imgtool snapshot create a.vdi@one
