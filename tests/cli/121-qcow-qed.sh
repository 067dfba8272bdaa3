# QEMU's older formats: what qemu-img writes is read byte for byte, chains too; what is wrong in a header or a table is named.
need qemu-img qemu-io
random_bytes 121 $((1 << 20)) >noise
{ cat noise; head -c 1M /dev/zero; { yes 'a line of text' || true; } | head -c 1M; head -c 5M /dev/zero; cat noise; } >disk.raw
truncate -s $((9 << 20)) disk.raw

check_one()
{
	local file=$1 raw=$2 before
	before=$(sha "$file")
	cmp <(imgtool read -q "$file") "$raw" || fail "$file: content"
	for at in 0 511 1048575 2097000 3145000; do
		cmp <(imgtool read -q "$file" --offset $at --length 70001) <(tail -c +$((at + 1)) "$raw" | head -c 70001) || fail "$file: at $at"
	done
	imgtool check -q "$file" || fail "$file: check"
	imgtool convert -q -O raw "$file" out.raw
	cmp out.raw "$raw" || fail "$file: convert"
	imgtool map -q --json "$file" | json "sum(e['length'] for e in d['extents']) == $(stat -c %s "$raw")" | grep -qx True || fail "$file: map"
	expect 6 imgtool write "$file" <<<x
	rm out.raw
	test "$(sha "$file")" = "$before" || fail "$file: was changed"
	echo "$file"
}

qemu-img convert -O qcow disk.raw one.qcow
# qemu-img 7.2 ends with 1 and without a word after it wrote all of it
qemu-img convert -c -f raw -O qcow disk.raw packed.qcow || qemu-img compare -q -f raw -F qcow disk.raw packed.qcow
for cluster in 4096 65536 1048576; do
	qemu-img convert -O qed -o cluster_size=$cluster,table_size=2 disk.raw c$cluster.qed
	check_one c$cluster.qed disk.raw
done
check_one one.qcow disk.raw
check_one packed.qcow disk.raw
imgtool inspect -q one.qcow
imgtool inspect -q c4096.qed

# overlays; a QED remembers that its base is raw, a qcow does not: there a base must be recognised, and raw never is
cp disk.raw changed.raw
printf 'ccccccc' | dd of=changed.raw bs=1 seek=3000000 conv=notrunc status=none
qemu-img convert -O qcow2 disk.raw base.qcow2
qemu-img create -q -f qcow -b base.qcow2 -F qcow2 over.qcow
qemu-img create -q -f qed -b disk.raw -F raw over.qed
for format in qcow qed; do
	qemu-io -f $format -c 'write -q -P 99 3000000 7' over.$format >/dev/null
	check_one over.$format changed.raw
	imgtool info -q --chain over.$format | grep -c '^format:'
	expect 6 imgtool read --allow-refs none over.$format
	expect 6 imgtool inspect over.$format
done
qemu-img create -q -f qcow -b disk.raw -F raw blind.qcow
expect 6 imgtool read blind.qcow
grep -o 'neither recorded nor recognised' err
mv disk.raw away.raw
expect 3 imgtool read over.qed
mv away.raw disk.raw

# put FILE OFFSET HEX: into a copy
put()
{
	cp "$1" bad
	/usr/bin/python3 -c 'import sys; f = open("bad", "r+b"); f.seek(int(sys.argv[1], 0)); f.write(bytes.fromhex(sys.argv[2]))' "$2" "$3"
}
refused()
{
	expect "$1" imgtool convert -O raw bad bad.raw
	grep -q "$2" err || fail "$2: $(cat err)"
	test ! -e bad.raw
	test "$(wc -l <err)" = 1 || fail "$(cat err)"
	imgtool inspect bad >inspected 2>&1 && fail "inspected as safe: $2"
	grep -v "^bad: " inspected | sed 's/^[a-z]*: bad: [^[]*/  /' | sort -u | head -n 2
}
echo 'qcow: cluster, table, size, first table, encryption, name'
put one.qcow 32 08; refused 4 'size of a cluster'
put one.qcow 33 20; refused 4 'size of a table'
put one.qcow 24 ffffffffffffffff; refused 4 'size of the disk'
put one.qcow 40 0000000080000000; refused 4 'first table'
put one.qcow 36 00000001; refused 6 'encrypted'
put one.qcow 8 000000000000003000000800; refused 4 'name of the backing file'
put one.qcow 8 00000000ffff000000000008; refused 4 'name of the backing file'
echo 'qcow: table outside, cluster outside'
put one.qcow 0x30 7fffffffffff0000; refused 4 'table of clusters'
table=$(/usr/bin/python3 -c 'import struct; f = open("one.qcow", "rb"); f.seek(0x30); print(struct.unpack(">Q", f.read(8))[0])')
put one.qcow "$table" 0000100000000000; refused 4 'not inside the file'
echo 'qed: cluster, table, size, first table, features, dirty'
put c4096.qed 4 00080000; refused 4 'size of a cluster'
put c4096.qed 8 03000000; refused 4 'size of a table'
put c4096.qed 48 01000000000000; refused 4 'size of the disk'
put c4096.qed 40 00000000ffff0000; refused 4 'first table'
put c4096.qed 16 08; refused 6 'unknown features'
put c4096.qed 16 02
imgtool read bad | cmp - disk.raw
imgtool info --json bad | json 'd["dirty"]'
expect 0 imgtool inspect bad
grep -o "\[dirty\]" out

# one cluster twice, a damaged stream: found by check, with the rule
/usr/bin/python3 - <<'END'
import struct
with open("c4096.qed", "rb") as f:
    data = bytearray(f.read())
first = struct.unpack_from("<Q", data, 40)[0]
table = struct.unpack_from("<Q", data, first)[0]
data[table + 8:table + 16] = data[table:table + 8]
open("twice", "wb").write(data)
with open("packed.qcow", "rb") as f:
    data = bytearray(f.read())
table = struct.unpack_from(">Q", data, struct.calcsize(">48x"))[0]
text = 2 << 20
l2 = struct.unpack_from(">Q", data, 48 + 8 * (text // 4096 // 512))[0]
entry = struct.unpack_from(">Q", data, l2 + 8 * (text // 4096 % 512))[0]
assert entry >> 63
at = entry & (1 << 51) - 1
data[at:at + 8] = b"\xff" * 8
open("torn", "wb").write(data)
END
expect 4 imgtool check twice
grep -o 'QED-5' out
expect 4 imgtool check torn
grep -o 'QCOW-5' out
expect 4 imgtool read torn
