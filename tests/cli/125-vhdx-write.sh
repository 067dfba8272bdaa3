# SPDX-License-Identifier: MIT
# VHDX is written: options, both directions against qemu-img, differences made, written, committed, rebased, flattened; sizes; checks and
# repairs; what children know their parents by. The reader is not ours to share a mistake with.
reader() { /usr/bin/python3 -B "$SRCDIR/tests/interop/vhdx_reader.py" "$@"; }
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
judged()
{
	expect 0 imgtool check -q "$1"
	same "the reader's content of $1, and no log" "$(reader judge "$1")" "$(sha want.raw) 00000000-0000-0000-0000-000000000000"
	same "content of $1" "$(digest "$1")" "$(sha want.raw)"
}
# libvhdi 20210425 takes a byte of a bitmap that has a bit for one that has all, so that it is asked where sectors come by eights.
libvhdi() # FILE PARENT...
{
	local status=0
	/usr/bin/python3 -B "$SRCDIR/tests/interop/vhdx_libvhdi.py" "$@" >got || status=$?
	((status == 77)) || same "libvhdi's content of $1" "$(cat got)" "$(sha want.raw)"
}
put() # FILE OFFSET TEXT
{
	printf '%s' "$3" | imgtool write -q "$1" --offset "$2"
	printf '%s' "$3" | dd of=want.raw bs=1 seek="$2" conv=notrunc status=none
}
data_guid() { reader guids "$1" | cut -d' ' -f2; }
file_guid() { reader guids "$1" | cut -d' ' -f1; }
holes() { [[ $(($(stat -c '%b * %B' "$1"))) -lt $(stat -c %s "$1") ]] && echo holes || echo solid; }

# ---- options ----
random_bytes 5 2000000 >want.raw
truncate -s 5M want.raw
for o in '' subformat=fixed block_size=1M block_size=256M log_size=2M physical_sector_size=512 logical_sector_size=4096 sparse=off; do
	imgtool convert -q -f raw -O vhdx ${o:+-o $o} want.raw o.vhdx
	judged o.vhdx
	judge='qemu-img: the same'
	if [[ $o == logical* ]]; then
		judge='qemu-img knows no such sectors'
	elif type qemu-img >/dev/null 2>&1; then
		qemu-img compare -q -f vhdx -F raw o.vhdx want.raw || fail "qemu-img sees something else: $o"
	fi
	libvhdi o.vhdx
	echo "${o:-default}: $(holes o.vhdx), $judge"
	imgtool info --json o.vhdx | json 'd["virtual_size"], d["block_size"], d["format_specific"]["subformat"], d["format_specific"]["logical_sector_size"], d["format_specific"]["physical_sector_size"], d["format_specific"]["log_size"]'
	imgtool measure -f raw -O vhdx ${o:+-o $o} want.raw | head -n 1
	stat -c %s o.vhdx
	put o.vhdx 3000001 "$o in a block of its own"
	judged o.vhdx
	[[ $o != sparse=off ]] || same 'still without holes' "$(holes o.vhdx)" solid
	rm o.vhdx
done
run imgtool create -f vhdx -o block_size=3M x.vhdx 1M
run imgtool create -f vhdx -o block_size=512K x.vhdx 1M
run imgtool create -f vhdx -o logical_sector_size=1024 x.vhdx 1M
run imgtool create -f vhdx -o logical_sector_size=4096 x.vhdx 1025K
run imgtool create -f vhdx -o log_size=3000000 x.vhdx 1M
run imgtool create -f vhdx -o sparse=perhaps x.vhdx 1M
run imgtool create -f vhdx -o nonsense=1 x.vhdx 1M
run imgtool create -f vhdx x.vhdx 65T
run imgtool create -f vhdx x.vhdx 0
imgtool create -q -f vhdx -o uuid=01234567-89ab-cdef-0123-456789abcdef,block_size=1M u.vhdx 64T
imgtool info --json u.vhdx | json 'd["format_specific"]["virtual_disk_id"], d["virtual_size"]'
printf end | imgtool write -q u.vhdx --offset $(((64 << 40) - 3))
imgtool read u.vhdx --offset $(((64 << 40) - 3))
echo
rm u.vhdx

# ---- qemu-img writes, we write on ----
if type qemu-img >/dev/null 2>&1; then
	for o in block_size=1M subformat=fixed,block_size=1M log_size=2M; do
		qemu-img convert -f raw -O vhdx -o $o want.raw q.vhdx
		put q.vhdx 4000000 "on top of $o"
		judged q.vhdx
		imgtool resize -q q.vhdx 9M
		truncate -s 9M want.raw
		put q.vhdx 9000000 'in the new part'
		judged q.vhdx
		qemu-img compare -q -f vhdx -F raw q.vhdx want.raw || fail "qemu-img sees something else after $o"
		qemu-img check -q q.vhdx
		truncate -s 5M want.raw
		rm q.vhdx
	done
fi

# ---- GUIDs: of the file with any change, of the data with the first change of it, once per writer ----
imgtool convert -q -f raw -O vhdx -o block_size=1M want.raw base.vhdx
f=$(file_guid base.vhdx) d=$(data_guid base.vhdx)
before=$(sha base.vhdx)
imgtool read -q base.vhdx | cmp - want.raw
imgtool check -q base.vhdx
same 'a reader changes nothing' "$(sha base.vhdx)" "$before"
put base.vhdx 10 x
[[ $(file_guid base.vhdx) != "$f" && $(data_guid base.vhdx) != "$d" ]] || fail 'the GUIDs stay'
d=$(data_guid base.vhdx)
cp want.raw base.raw

# ---- differences ----
imgtool create -q -f vhdx -b base.vhdx -o block_size=1M eights.vhdx
put eights.vhdx 8192 "$(head -c 16384 /dev/zero | tr '\0' e)"
put eights.vhdx 1044480 "$(head -c 12288 /dev/zero | tr '\0' f)"
judged eights.vhdx
libvhdi eights.vhdx base.vhdx
rm eights.vhdx
cp base.raw want.raw
mkdir sub
imgtool create -q -f vhdx -b base.vhdx -o block_size=1M child.vhdx
imgtool create -q --allow-refs any -f vhdx -b ../child.vhdx -F vhdx sub/kind.vhdx
judged child.vhdx
same 'identity on record' "$(imgtool info --json child.vhdx | json 'd["format_specific"]["parent_linkage"]')" "{$d}"
put child.vhdx 1000 'one sector of the parent stays around this'
put child.vhdx 1048000 "$(head -c 5000 /dev/zero | tr '\0' x)"
put child.vhdx 4800000 'where the parent has nothing'
judged child.vhdx
imgtool info --json child.vhdx | json 'd["backing"]["name"], d["backing"]["format"], d["backing"]["pin"], d["format_specific"]["subformat"]'
imgtool map child.vhdx 2>/dev/null | awk '{ print $1, $2, $3, $4 }'
run imgtool checksum --allow-refs any sub/kind.vhdx # its parent was written to
rm -r sub
head -c 1M /dev/zero | imgtool write -q child.vhdx
dd if=/dev/zero of=want.raw bs=1M count=1 conv=notrunc status=none
judged child.vhdx

cp base.vhdx other.vhdx
imgtool rebase -q -b other.vhdx child.vhdx
judged child.vhdx
same 'a name changes no data' "$(data_guid base.vhdx)" "$d"
imgtool flatten -q child.vhdx
judged child.vhdx
imgtool rebase -q -b base.vhdx child.vhdx
judged child.vhdx
imgtool resize -q child.vhdx 7M
truncate -s 7M want.raw
judged child.vhdx
put child.vhdx 7000000 'in the new part'
imgtool create -q -f vhdx -b child.vhdx top.vhdx
put top.vhdx 3333333 'a third layer'
judged top.vhdx
imgtool info -q --chain --json top.vhdx | json "[(l['filename'], l['format']) for l in d['chain']]"
imgtool commit -q top.vhdx
judged top.vhdx
judged child.vhdx
imgtool commit -q child.vhdx
judged base.vhdx
judged child.vhdx
run imgtool checksum top.vhdx # it stands on what was emptied: the same content, and the same GUID
imgtool info --json child.vhdx | json 'd["file_size"] < 5000000'

# Never a wrong parent, never zeros.
mv base.vhdx gone.vhdx
run imgtool checksum child.vhdx
imgtool create -q -f vhdx base.vhdx 7M
run imgtool checksum child.vhdx
run imgtool read child.vhdx --length 1
mv gone.vhdx base.vhdx
judged child.vhdx
printf x | imgtool write -q base.vhdx
run imgtool checksum child.vhdx
run imgtool create -f vhdx -b want.raw -F raw x.vhdx
run imgtool create -f vhdx -o subformat=fixed -b base.vhdx x.vhdx
run imgtool create -f vhdx -o logical_sector_size=4096 -b base.vhdx x.vhdx
imgtool create -q -f vhdx -o logical_sector_size=4096 four.vhdx 4M
imgtool create -q -f vhdx -b four.vhdx over.vhdx
imgtool info --json over.vhdx | json 'd["format_specific"]["logical_sector_size"], d["block_size"]'
run imgtool rebase -b base.vhdx over.vhdx
run imgtool create --allow-refs none -f vhdx -b base.vhdx x.vhdx
rm -f ./*.vhdx

# ---- sizes: the table moves where its room ends ----
truncate -s 6M want.raw
imgtool convert -q -f raw -O vhdx -o block_size=1M want.raw r.vhdx
imgtool resize -q r.vhdx 200G
printf far | imgtool write -q r.vhdx --offset 150000000000
imgtool check -q r.vhdx
reader verify r.vhdx
same 'far away' "$(imgtool read r.vhdx --offset 150000000000 --length 3)" far
type qemu-img >/dev/null 2>&1 && { qemu-img info r.vhdx | grep 'virtual size'; } || echo 'virtual size: 200 GiB (214748364800 bytes)'
expect 6 imgtool resize -q r.vhdx 6M
imgtool resize -q --shrink r.vhdx 6M
judged r.vhdx
imgtool resize -q --shrink r.vhdx 1536K
truncate -s 1536K want.raw
judged r.vhdx
imgtool resize -q r.vhdx 6M
truncate -s 6M want.raw
judged r.vhdx
run imgtool resize r.vhdx 65T
imgtool convert -q -f raw -O vhdx -o subformat=fixed,block_size=1M want.raw f.vhdx
imgtool resize -q f.vhdx 9M
truncate -s 9M want.raw
judged f.vhdx
imgtool resize -q --shrink f.vhdx 3M
truncate -s 3M want.raw
judged f.vhdx

# ---- findings ----
patch() # FILE OFFSET HEX
{
	/usr/bin/python3 -c 'import sys; f = open(sys.argv[1], "r+b"); f.seek(int(sys.argv[2], 0)); f.write(bytes.fromhex(sys.argv[3]))' "$@"
}
finding()
{
	run imgtool check r.vhdx
	imgtool check -q --repair r.vhdx || fail "repair: $1"
	expect 0 imgtool check -q r.vhdx
	reader verify r.vhdx || fail "the reader finds fault after a repair: $1"
}
random_bytes 5 2000000 >want.raw
rm r.vhdx
imgtool create -q -f vhdx -o block_size=1M r.vhdx 6M
imgtool write -q r.vhdx <want.raw # block 0 first: a conversion has several at once
truncate -s 6M want.raw
cp r.vhdx good.vhdx
patch r.vhdx 65600 ff
finding 'the first header'
patch r.vhdx 131200 ff
finding 'the second header'
patch r.vhdx 0x30010 ff
finding 'the first region table'
patch r.vhdx 0x40010 ff
finding 'the second region table'
truncate -s +3M r.vhdx
finding 'room at the end'
judged r.vhdx
patch r.vhdx 0x300028 0600f000
finding 'an entry that leads nowhere'
judged r.vhdx
patch r.vhdx 0x300000 0600200000000000
run imgtool check r.vhdx
expect 4 imgtool write -q r.vhdx <<<x
cat err
cp good.vhdx r.vhdx
patch r.vhdx 0x300008 0600400000000000
run imgtool check r.vhdx
