# SPDX-License-Identifier: MIT
# Differencing disks: made, written, committed, rebased, flattened; parents that are missing or others; what other programs write.
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vhd_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vhd_reader.py" "$@"; }
judged()
{
	expect 0 imgtool check -q "$1"
	vhd_reader verify "$1" || fail "the reader finds fault with $1"
	same "the reader's content" "$(vhd_reader digest "$1")" "$(digest "$1")"
	same "content" "$(digest "$1")" "$(sha want.raw)"
}
put() # FILE OFFSET TEXT
{
	printf '%s' "$3" | imgtool write -q "$1" --offset "$2"
	printf '%s' "$3" | dd of=want.raw bs=1 seek="$2" conv=notrunc status=none
}

random_bytes 9 3000000 >want.raw
truncate -s 9M want.raw
imgtool convert -q -f raw -O vhd want.raw base.vhd
mkdir sub
for name in child.vhd sub/kind.vhd; do
	parent=base.vhd
	[[ $name == child.vhd ]] || parent=../child.vhd
	imgtool create -q --allow-refs any -f vhd -b $parent $name
	[[ $name == child.vhd ]] || break
	judged $name
	put $name 1000 'one sector of the parent stays around this'
	put $name 2097100 "$(head -c 5000 /dev/zero | tr '\0' x)"
	put $name 8000000 'where the parent has nothing'
	judged $name
done
imgtool info --json child.vhd | json 'd["backing"]["name"], d["backing"]["format"], d["backing"]["pin"], d["format_specific"]["subformat"]'
imgtool map child.vhd 2>/dev/null | awk '{ print $1, $2, $3, $4 }'
run imgtool checksum sub/kind.vhd
same "by a path that leads up" "$(digest --allow-refs any sub/kind.vhd)" "$(sha want.raw)"
rm -r sub

# Another parent, the same content; none; and back.
cp base.vhd other.vhd
imgtool rebase -q -b other.vhd child.vhd
judged child.vhd
imgtool flatten -q child.vhd
judged child.vhd
imgtool rebase -q -b base.vhd child.vhd
judged child.vhd
imgtool resize -q child.vhd 12M
truncate -s 12M want.raw
judged child.vhd
put child.vhd 12000000 'in the new part'
imgtool create -q -f vhd -b child.vhd -o block_size=64K top.vhd
put top.vhd 3333333 'a third layer'
judged top.vhd
cp child.vhd kept.vhd
imgtool commit -q top.vhd
judged top.vhd
judged child.vhd
imgtool commit -q child.vhd
judged top.vhd
judged base.vhd
# The last block reaches over the disk's end: of that part nothing is left to a parent either.
imgtool create -q -f vhd short.vhd 1M
imgtool create -q -f vhd -b short.vhd shorter.vhd
printf 'x' | imgtool write -q shorter.vhd --offset 5000
imgtool flatten -q shorter.vhd
vhd_reader verify shorter.vhd || fail "the reader finds fault with a short disk that was flattened"
imgtool info --json child.vhd | json 'd["file_size"] < 10000'

# Never a wrong parent, never zeros.
mv base.vhd gone.vhd
run imgtool checksum child.vhd
run imgtool convert -O raw child.vhd x.raw
imgtool create -q -f vhd base.vhd 12M
run imgtool checksum child.vhd
run imgtool read child.vhd --length 1
mv gone.vhd base.vhd
judged child.vhd
run imgtool create -f vhd -b want.raw -F raw x.vhd
run imgtool create -f vhd -o subformat=fixed -b base.vhd x.vhd
cp base.vhd 'back\slash.vhd'
run imgtool create -f vhd -b 'back\slash.vhd' x.vhd
run imgtool create --allow-refs none -f vhd -b base.vhd x.vhd
run imgtool info --allow-refs none child.vhd >/dev/null

# As Windows, Virtual PC and others write them.
/usr/bin/python3 - "$SRCDIR/tests/images/gen" <<'END'
import sys
sys.dont_write_bytecode = True
sys.path.insert(0, sys.argv[1])
from vhd_image import *
two = {n: bytes([n % 251 + 1]) * SECTOR for n in list(range(0, 40)) + list(range(5000, 5009))}
base = Image(4 << 20, ident=b'0123456789abcdef').dynamic(two)
base.save('w-base.vhd')
utf16 = lambda text: text.encode('utf-16-le')
three = {n: b'child' + bytes(507) for n in (3, 4, 39, 5003, 8191)}
for name, locators in (('relative', [(b'W2ku', utf16('C:\\nowhere\\w-other.vhd')), (b'W2ru', utf16('.\\w-base.vhd'))]),
                       ('absolute', [(b'W2ku', utf16('D:\\disks\\w-base.vhd'))]),
                       ('mac', [(b'MacX', b'file://localhost/Users/me/a%20disk.vhd')]),
                       ('name', [])):
    Image(4 << 20).differencing(three, base.ident, locators, 'C:\\x\\w-base.vhd', space=1).save('w-%s.vhd' % name)
Image(4 << 20).differencing(three, base.ident, [(b'W2ru', b'\0\xd8.\0')], '').save('w-nameless.vhd')
Image(4 << 20, creator=b'vpc ', chs=(100, 4, 17)).dynamic(two, full=False, header_off=2048, extra_entries=9).save('w-vpc.vhd')
Image(4 << 20).dynamic(two, old_footer=True).save('w-old.vhd')
Image(4 << 20).dynamic(two).put_entry(1, 3).save('w-overlap.vhd')
Image(4 << 20).dynamic(two).put_entry(1, 0xfffffff0).save('w-outside.vhd')
Image(127 << 30, block=1 << 20).dynamic({0: b'x' * SECTOR}).save('w-bomb.vhd')
END
/usr/bin/python3 - <<'END'
import struct
data = bytearray(open('w-bomb.vhd', 'rb').read())
table, entries = struct.unpack_from('>Q4xI', data, 512 + 16)
data[table:table + 4 * entries] = data[table:table + 4] * entries
open('w-bomb.vhd', 'wb').write(data)
END
for name in relative absolute name; do
	same "$name" "$(digest w-$name.vhd)" "$(vhd_reader digest w-$name.vhd)"
	imgtool info --json w-$name.vhd | json 'd["backing"]["name"]'
done
imgtool info --json w-mac.vhd | json 'd["backing"]["name"]'
run imgtool checksum w-nameless.vhd
run imgtool check w-nameless.vhd
run imgtool check w-vpc.vhd
imgtool info --json w-vpc.vhd | json 'd["virtual_size"], d["format_specific"]["footer_size"], d["format_specific"]["size_from"]'
imgtool amend -o size_from=footer w-vpc.vhd
imgtool info --json w-vpc.vhd | json 'd["virtual_size"], d["format_specific"]["size_from"]'
before=$(digest w-vpc.vhd)
run imgtool check --repair w-vpc.vhd
run imgtool check w-vpc.vhd
same 'the content' "$(digest w-vpc.vhd)" "$before"
run imgtool check w-old.vhd
imgtool write -q w-old.vhd --offset 0 <<<"now it has 512"
vhd_reader verify w-old.vhd
run imgtool check w-overlap.vhd
run imgtool check w-outside.vhd
run imgtool check --repair w-outside.vhd
run imgtool check w-outside.vhd
run imgtool info w-bomb.vhd
