# SPDX-License-Identifier: MIT
# VMDK: made, written and read in turns with qemu-img; options, extents of all kinds, resize, check and repair, refusals.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vmdk_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vmdk_reader.py" "$@"; }
vmdk_image() { /usr/bin/python3 "$SRCDIR/tests/images/gen/vmdk_image.py" "$@"; }
judged()
{
	qemu-img check -q -f vmdk "$1" >log 2>&1 || { cat log; fail "qemu-img check $1"; }
	expect 0 imgtool check -q "$1"
	vmdk_reader verify "$1" || fail "the reader finds fault with $1"
	qemu-img convert -f vmdk -O raw "$1" judge.raw
	same "qemu-img's content of $1" "$(digest -f raw judge.raw)" "$(digest "$1")"
	same "the reader's content of $1" "$(vmdk_reader hash "$1" | cut -d' ' -f1)" "$(digest "$1")"
	rm judge.raw
}
cid() { vmdk_reader values "$1" | sed -n 's/^cid=//p'; }
# name, extents: a descriptor of type custom
disk()
{
	printf '# Disk DescriptorFile\nversion=1\nCID=12345678\nparentCID=ffffffff\ncreateType="custom"\n%s\n' "$2" >"$1"
}

run imgtool create -f vmdk -o help
run imgtool create -f vmdk a.vmdk 20M
imgtool info --json a.vmdk | json 'd["format"], d["virtual_size"], d["block_size"], d["format_specific"]["subformat"]'
judged a.vmdk
random_bytes 100 3000000 >junk
before=$(cid a.vmdk)
imgtool write -q a.vmdk --offset 1500000 <junk
judged a.vmdk
[[ $before != "$(cid a.vmdk)" ]] || fail "a write does not change the content id"
before=$(cid a.vmdk)
imgtool read -q a.vmdk --offset 0 --length 1M >/dev/null
same "content id" "$(cid a.vmdk)" "$before"
qemu-io -f vmdk -c 'write -q -P 7 512k 3M' -c 'write -q -z 9M 2M' a.vmdk >log || fail "$(cat log)"
judged a.vmdk
head -c 700000 junk | imgtool write -q a.vmdk --offset 18M
judged a.vmdk

# Both directions, all types; several files each.
for options in subformat=monolithicSparse subformat=monolithicFlat subformat=twoGbMaxExtentSparse,extent_size=6M \
	subformat=twoGbMaxExtentFlat,extent_size=3M subformat=vmfs zeroed_grain=on grain_size=4K grain_size=2M,adapter_type=ide,hwversion=4; do
	rm -f b*.vmdk
	imgtool convert -q -O vmdk -o $options a.vmdk b.vmdk
	judged b.vmdk
	same "content with $options" "$(digest b.vmdk)" "$(digest a.vmdk)"
	[[ $options == *vmfs ]] && continue
	qemu-io -f vmdk -c 'write -q -P 9 5M 2M' b.vmdk >log || fail "$(cat log)"
	head -c 2500000 junk | imgtool write -q b.vmdk --offset 4M 2>log || fail "$(cat log)"
	judged b.vmdk
done
rm -f b*.vmdk
for options in subformat=monolithicFlat subformat=twoGbMaxExtentSparse subformat=twoGbMaxExtentFlat zeroed_grain=on adapter_type=lsilogic; do
	rm -f b*.vmdk
	qemu-img convert -f vmdk -O vmdk -o $options a.vmdk b.vmdk
	head -c 1000000 junk | imgtool write -q b.vmdk --offset 7777777 2>log || fail "$(cat log)"
	judged b.vmdk
done
ls b*.vmdk
imgtool create -q -f vmdk -o geometry=7/8/9,adapter_type=buslogic,uuid=6000c291-0102-0304-0506-0708090a0b0c c.vmdk 5M
imgtool info --json c.vmdk | json 'd["uuid"], [d["format_specific"].get(k) for k in ("geometry", "adapter_type", "hwversion")]'

# Extents of all kinds: nothing that is not RW vanishes, the disk keeps its size.
head -c 1048576 junk >x
tail -c 1048576 junk >y
disk mix.vmdk 'RW 2048 FLAT "x" 0
RW 2048 ZERO
RDONLY 1024 FLAT "y" 0
RDONLY 1024 FLAT "y" 1024
NOACCESS 2048 FLAT "secret" 0'
imgtool info --json mix.vmdk | json 'd["virtual_size"], d["format_specific"]["extents"]'
run imgtool map mix.vmdk
imgtool read mix.vmdk --offset 0 --length 3M 2>/dev/null >got
{ cat x; head -c 1M /dev/zero; cat y; } | cmp - got || fail "content of several extents"
run imgtool read mix.vmdk --offset 3M --length 512
for at in 1M 2M 3M; do run imgtool write mix.vmdk --offset $at <x ; done
same "content id of a disk that refused" "$(cid mix.vmdk)" 12345678
imgtool write -q mix.vmdk --offset 1000 <<<changed 2>/dev/null
[[ $(cid mix.vmdk) != 12345678 ]] || fail "a write to a raw extent does not change the content id"
expect 0 imgtool check -q mix.vmdk

# A descriptor ends at its first NUL; it may grow, and what stands behind must not become a part of it.
for rest in '\000' '\000more\n' '\000\000\000\000\000\000\000\000\000\000\000\000\000more\n'; do
	printf '# Disk DescriptorFile\nversion=1\nparentCID=ffffffff\ncreateType="custom"\nRW 2048 FLAT "x" 0\n' >grows.vmdk
	printf '%b' "$rest" >>grows.vmdk
	imgtool write -q grows.vmdk --offset 1000 <<<changed 2>/dev/null
	[[ -n $(cid grows.vmdk) ]] || fail "no content id was written"
	expect 0 imgtool check -q grows.vmdk
done

# Made by a generator: extents of ESX, tables that no tool writes.
imgtool convert -q -O raw a.vmdk a.raw
for kind in cowd:VMFSSPARSE sesparse:SESPARSE odd:SPARSE; do
	vmdk_image ${kind%:*} e.vmdk a.raw
	disk d.vmdk "RW 40960 ${kind#*:} \"e.vmdk\""
	same "${kind%:*}" "$(digest d.vmdk)" "$(digest a.vmdk)"
	same "the reader's ${kind%:*}" "$(vmdk_reader hash d.vmdk | cut -d' ' -f1)" "$(digest a.vmdk)"
	expect 0 imgtool check -q d.vmdk
	run imgtool write d.vmdk --offset 3M <junk
	[[ $kind == odd* ]] && run imgtool check d.vmdk
	run imgtool checksum e.vmdk
done
vmdk_image sesparse-dirty e.vmdk a.raw
disk d.vmdk 'RW 40960 SESPARSE "e.vmdk"'
run imgtool checksum d.vmdk

# Growing in place, over the room of the directories, and shrinking; raw extents too.
imgtool create -q -f vmdk r.vmdk 10M
imgtool write -q r.vmdk --offset 0 <junk
before=$(digest r.vmdk)
for size in 20480512 130M 5G; do
	imgtool resize -q r.vmdk $size
	expect 0 imgtool check -q r.vmdk
	qemu-img check -q -f vmdk r.vmdk || fail "qemu-img after growing to $size"
done
imgtool write -q r.vmdk --offset 4900M <junk
expect 0 imgtool check -q r.vmdk
qemu-img check -q -f vmdk r.vmdk || fail "qemu-img after writing behind the old end"
same "far content" "$(imgtool read r.vmdk --offset 4900M --length 3000000 | sha256sum)" "$(sha256sum <junk)"
imgtool resize -q --shrink r.vmdk 10M
judged r.vmdk
same "content" "$(digest r.vmdk)" "$before"
imgtool create -q -f vmdk -o subformat=monolithicFlat f.vmdk 3M
imgtool resize -q f.vmdk 30M 2>/dev/null
judged f.vmdk
imgtool resize -q --shrink f.vmdk 2M 2>/dev/null
judged f.vmdk
run imgtool resize b.vmdk 1M --shrink
run imgtool resize mix.vmdk 10M

# Damage: a copy that differs, an entry that leads nowhere, room that is nobody's, an extent that was not closed.
imgtool convert -q -O vmdk a.vmdk k.vmdk
printf '\1' | dd of=k.vmdk bs=1 seek=$((22 * 512 + 5)) conv=notrunc status=none
run imgtool check k.vmdk
run imgtool write k.vmdk --offset 0 <x
run imgtool check --repair k.vmdk
judged k.vmdk
printf '\377\377\377' | dd of=k.vmdk bs=1 seek=$((27 * 512 + 160)) conv=notrunc status=none
printf '\1' | dd of=k.vmdk bs=1 seek=72 conv=notrunc status=none
head -c 70000 junk >>k.vmdk
imgtool info --json k.vmdk | json 'd["dirty"]'
run imgtool check k.vmdk
run imgtool check --repair k.vmdk
expect 0 imgtool check -q k.vmdk
vmdk_reader verify k.vmdk || fail "after the repair"
printf '\1' | dd of=k.vmdk bs=1 seek=72 conv=notrunc status=none
imgtool write -q k.vmdk --offset 0 <x
judged k.vmdk

# A file that was cut off: what is written next would be what was lost, too.
imgtool create -q -f vmdk cut.vmdk 64M
imgtool write -q cut.vmdk --offset 0 <x
imgtool write -q cut.vmdk --offset 10M <x
truncate -s -65536 cut.vmdk
run imgtool write cut.vmdk --offset 20M <x
run imgtool check --repair cut.vmdk
imgtool write -q cut.vmdk --offset 20M <x
same "what was not cut off" "$(imgtool read cut.vmdk --offset 0 --length "$(stat -c %s x)" | sha256sum)" "$(sha256sum <x)"
judged cut.vmdk
imgtool create -q -f vmdk cut.vmdk --force 10M
imgtool resize -q cut.vmdk 130M
imgtool write -q cut.vmdk --offset 100M <x
truncate -s -2048 cut.vmdk # the copy of the table that was made for it
run imgtool write cut.vmdk --offset 50M <x
run imgtool check --repair cut.vmdk
imgtool write -q cut.vmdk --offset 50M <x
same "what the other table knew" "$(imgtool read cut.vmdk --offset 100M --length "$(stat -c %s x)" | sha256sum)" "$(sha256sum <x)"
judged cut.vmdk

# What cannot be.
run imgtool create -f vmdk n.vmdk 0
run imgtool create -f vmdk -o subformat=raw n.vmdk 1M
run imgtool create -f vmdk -o grain_size=3K n.vmdk 1M
run imgtool create -f vmdk -o subformat=vmfs,zeroed_grain=on n.vmdk 1M
run imgtool create -f vmdk -o block_size=4K n.vmdk 1M
run imgtool create --force -f vmdk -o subformat=monolithicFlat f.vmdk 1M
run imgtool snapshot create a.vmdk@one
for extents in 'RW 4 VMFSRDM "/dev/null"' 'RW 4 FLAT "x" 4096' 'RW 4 FLAT "nothing" 0' 'RW 4 FLAT "/etc/passwd" 0' 'RW 4 SPARSE "x"' \
	'RW 4 FLAT "a.vmdk" 0
RW 4 FLAT "./a.vmdk" 0' 'RW 4 FLAT "x" 0
RW 4 FLAT "x" 3' 'RW 4 FLAT "d.vmdk" 0' 'RW 4 FRESH "x"' 'WO 4 FLAT "x" 0'; do
	disk d.vmdk "$extents"
	run imgtool checksum d.vmdk
done
sed 's/custom/fullDevice/' <mix.vmdk >d.vmdk
run imgtool checksum d.vmdk
