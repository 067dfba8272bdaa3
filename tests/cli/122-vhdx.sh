# VHDX is read: logs of every shape without a change to the file, differences with their parents, sectors of both sizes; and written in
# copies, which replays logs. qemu-img is the judge where it can be: of a log after it replayed it in a copy, of chains it cannot; else a
# reader of our own.
need qemu-img
# A writer of a copy replays the log for good.
writable()
{
	cp --sparse=always "$1" copy.w
	cp --sparse=always "$1.raw" want.raw
	printf 'written' | imgtool write -q --allow-refs any copy.w --offset 70000
	printf 'written' | dd of=want.raw bs=1 seek=70000 conv=notrunc status=none
	/usr/bin/python3 -B "$SRCDIR/tests/interop/vhdx_reader.py" digest copy.w >got
	same "$1 after a write" "$(cat got)" "$(sha want.raw)"
	expect 0 imgtool info --json copy.w
	grep -q '"log_waits": false' out || fail "$1: a log is left"
	rm copy.w want.raw got
}
/usr/bin/python3 -B "$SRCDIR/tests/images/gen/vhdx_image.py" .
for file in *.vhdx; do
	before=$(sha "$file")
	cmp <(imgtool read -q "$file") "$file.raw" || fail "$file: content"
	imgtool convert -q -O raw "$file" out.raw
	cmp out.raw "$file.raw" || fail "$file: convert"
	case $file in
	log-foreign.*) # a block that only a log leads to which does not count
		expect 4 imgtool check "$file"
		grep -q VHDX-13 out || fail "$file: $(cat out)"
		;;
	*) imgtool check -q "$file" || fail "$file: check" ;;
	esac
	imgtool map -q --json "$file" | json "sum(e['length'] for e in d['extents']) == $(stat -c %s "$file.raw")" | grep -qx True || fail "$file: map"
	for at in 0 511 65535 1048000 2097151 3000001; do
		cmp <(imgtool read -q "$file" --offset $at --length 9001) <(tail -c +$((at + 1)) "$file.raw" | head -c 9001) || fail "$file: at $at"
	done
	test "$(sha "$file")" = "$before" || fail "$file: was changed"
	case $file in log-* | child.* | top.* | states.* | geometry-1-*) writable "$file" ;; esac
	case $file in
	child.* | top.*) judge='chain' ;;
	*-4096.*) judge='none: qemu-img knows no sectors of 4096 bytes' ;;
	log-many.*) judge='none: qemu-img 7.2 refuses entries with more than 126 descriptors' ;;
	log-moved.*) judge='none: qemu-img 7.2 replays what lies before the tail' ;;
	log-wrapped.*) judge='none: qemu-img 7.2 takes the end of a sequence for all of it' ;;
	log-*)
		cp "$file" copy.vhdx
		qemu-img check -r all copy.vhdx >/dev/null 2>&1 || true
		qemu-img compare -q -f vhdx -F raw copy.vhdx "$file.raw" || fail "$file: qemu-img sees something else"
		judge='replayed by qemu-img: the same'
		;;
	*)
		qemu-img compare -q -f vhdx -F raw "$file" "$file.raw" || fail "$file: qemu-img sees something else"
		judge='qemu-img: the same'
		;;
	esac
	echo "$file: $judge"
	rm out.raw
done
imgtool info log-plain.vhdx | grep -E 'format:|state'
imgtool info -q --chain --json top.vhdx | json "[(l['filename'], l['format']) for l in d['chain']]"
imgtool info --json child.vhdx | json "d['format_specific']['subformat'], d['format_specific']['logical_sector_size']"

# What qemu-img writes, and back through other formats.
qemu-img convert -O vhdx -o block_size=1M log-plain.vhdx.raw new.vhdx
cmp <(imgtool read new.vhdx) <(cat log-plain.vhdx.raw; head -c 0 /dev/null) || { imgtool compare new.vhdx log-plain.vhdx; }
imgtool convert new.vhdx new.limg
imgtool compare -q new.vhdx new.limg

# Parents: missing, another one, forbidden; never zeros.
mv base.vhdx away.vhdx
expect 3 imgtool read child.vhdx
grep -o "cannot open 'base.vhdx'" err
cp states.vhdx base.vhdx
expect 6 imgtool read child.vhdx
mv away.vhdx base.vhdx
expect 6 imgtool read --allow-refs none child.vhdx
# an overlay of ours on a difference
imgtool create -q -b top.vhdx -F vhdx over.limg
cmp <(imgtool read -q over.limg) top.vhdx.raw

# put FILE OFFSET HEX: into a copy
put()
{
	cp --sparse=always "$1" bad.vhdx
	/usr/bin/python3 -c 'import sys; f = open("bad.vhdx", "r+b"); f.seek(int(sys.argv[1], 0)); f.write(bytes.fromhex(sys.argv[2]))' "$2" "$3"
}
refused()
{
	expect "$1" imgtool convert -q -O raw bad.vhdx bad.raw
	grep -q "$2" err || fail "$2: $(cat err)"
	test ! -e bad.raw
	test "$(wc -l <err)" = 1 || fail "$(cat err)"
	echo "$2"
}
one=log-plain.vhdx
put $one 65600 ff; imgtool compare -q bad.vhdx $one
echo 'one header is enough'
/usr/bin/python3 -c 'f = open("bad.vhdx", "r+b"); f.seek(131136); f.write(b"\xff")'
refused 4 'neither copy of the header'
put $one 196700 ff; imgtool compare -q bad.vhdx $one
echo 'one region table is enough'
/usr/bin/python3 -c 'f = open("bad.vhdx", "r+b"); f.seek(262236); f.write(b"\xff")'
refused 4 'neither copy of the region table'
put $one 0x200000 00; refused 4 'no table of metadata'
put $one 0x210000 00020000; refused 4 'size of a block'
put $one 0x210008 ffffffffffffffff; refused 4 'size of the disk'
put states.vhdx 0x300000 05; refused 4 'state 5'
put states.vhdx 0x300000 07; refused 4 'state 7'
put states.vhdx 0x300000 0600f0ff; refused 4 'file'
truncate -s -1M bad.vhdx
cp $one bad.vhdx; truncate -s -1M bad.vhdx; refused 4 'cut off'
