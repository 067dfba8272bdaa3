# SPDX-License-Identifier: MIT
# VHD: sizes to the sector, both ways with qemu-img, options, resize, footers that are damaged or missing, refusals.
need qemu-img
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
vhd_reader() { /usr/bin/python3 "$SRCDIR/tests/interop/vhd_reader.py" "$@"; }
# qemu-img, the reader and imgtool see the same disk; a strict reader has nothing to say.
judged()
{
	expect 0 imgtool check -q "$1"
	vhd_reader verify "$1" || fail "the reader finds fault with $1"
	same "the reader's content" "$(vhd_reader digest "$1")" "$(digest "$1")"
	qemu-img convert -f vpc -O raw "$1" judge.raw
	same "qemu-img's content" "$(sha judge.raw)" "$(digest "$1")"
	rm judge.raw
}

# Exactly the size that was asked for, to every reader.
run imgtool create -f vhd -o help
for size in 512 3000320 40M 1G; do
	for type in dynamic fixed; do
		imgtool create -q --force -f vhd -o subformat=$type a.vhd $size
		want=$(imgtool info --json a.vhd | json 'd["virtual_size"]')
		same "size to qemu-img" "$(qemu-img info -f vpc --output=json a.vhd | json 'd["virtual-size"]')" "$want"
		[ $size = 1G ] || judged a.vhd
	done
done
imgtool create -q --force -f vhd -o align=1M a.vhd 3000320
imgtool info --json a.vhd | json 'd["virtual_size"]'
run imgtool create -f vhd -o uuid=01234567-89ab-cdef-0123-456789abcdef,block_size=512K --force a.vhd 100M
imgtool info --json a.vhd | json 'd["uuid"], d["block_size"], d["format_specific"]'

# Content, both ways.
random_bytes 7 5000000 >r.raw
truncate -s 21504000 r.raw
for options in subformat=dynamic subformat=fixed block_size=512K block_size=16M block_size=4K; do
	imgtool convert -q -f raw -O vhd -o $options --force r.raw a.vhd
	same "$options" "$(digest a.vhd)" "$(sha r.raw)"
	judged a.vhd
	imgtool write -q a.vhd --offset 12345678 <<<"in the middle of nothing"
	judged a.vhd
done
for options in subformat=dynamic subformat=fixed subformat=dynamic,force_size=on; do
	qemu-img convert -f raw -O vpc -o $options r.raw q.vhd
	qemu-img convert -f vpc -O raw q.vhd q.raw
	same "qemu-img's $options" "$(digest q.vhd)" "$(sha q.raw)"
	expect 0 imgtool check -q q.vhd
	imgtool write -q q.vhd --offset 15000000 <<<"more"
	qemu-img convert -f vpc -O raw q.vhd q.raw
	same "qemu-img's $options, written" "$(digest q.vhd)" "$(sha q.raw)"
done
run imgtool measure -O vhd --size 1G
run imgtool measure -O vhd -o subformat=fixed --size 1G

# A table that has to move, and a disk that becomes small again.
imgtool convert -q -f raw -O vhd --force r.raw a.vhd
for size in 21504512 100M 400M; do
	imgtool resize -q a.vhd $size
	judged a.vhd
done
imgtool write -q a.vhd --offset 350M <<<"far away"
imgtool resize -q --shrink a.vhd 21504000
judged a.vhd
same "content" "$(digest a.vhd)" "$(sha r.raw)"
[[ $(stat -c %s a.vhd) -lt 7000000 ]] || fail "the file keeps what the disk lost"
imgtool convert -q -f raw -O vhd -o subformat=fixed --force r.raw f.vhd
imgtool resize -q f.vhd 30M
judged f.vhd
imgtool resize -q --shrink f.vhd 21504000
judged f.vhd
same "content" "$(digest f.vhd)" "$(sha r.raw)"

# The footer: its copy stands in for it, and a repair makes it anew.
cp a.vhd b.vhd
truncate -s -512 b.vhd
same "without footer" "$(digest b.vhd)" "$(sha r.raw)"
run imgtool check b.vhd
run imgtool check --repair b.vhd
judged b.vhd
cp a.vhd b.vhd
flip b.vhd 100
run imgtool check b.vhd
imgtool write -q b.vhd --offset 0 </dev/null
head -c 512 r.raw | imgtool write -q b.vhd --offset 0
judged b.vhd
same "without copy" "$(digest b.vhd)" "$(sha r.raw)"
cp a.vhd b.vhd
flip b.vhd 100
flip b.vhd $(($(stat -c %s b.vhd) - 412))
same "two that are stale" "$(digest b.vhd)" "$(sha r.raw)"
run imgtool write b.vhd --offset 0 </dev/null
run imgtool check --repair b.vhd
judged b.vhd
cp a.vhd b.vhd
flip b.vhd 600
run imgtool info b.vhd
truncate -s 1000 b.vhd
run imgtool check b.vhd

# A fixed disk whose guest wrote a whole VHD to the beginning of it is nobody's to guess.
imgtool create -q -f vhd inner.vhd 1M
imgtool create -q -f vhd -o subformat=fixed outer.vhd 2M
dd if=inner.vhd of=outer.vhd conv=notrunc status=none
run imgtool info outer.vhd

# What cannot be.
run imgtool create -f vhd x.vhd 3T
run imgtool create -f vhd -o block_size=3M x.vhd 1M
run imgtool create -f vhd -o align=1000 x.vhd 1M
# Another size than asked for is said.
run imgtool create --force -f vhd -o align=1M x.vhd 3000320
run imgtool create --force -f vhd -o align=1M x.vhd 3M
run imgtool create --force -f vhd y.vhd 3000320
run imgtool create --force -f vhd -o align=64K -b y.vhd x.vhd
run imgtool create -q --force -f vhd -o align=64K -b y.vhd x.vhd
rm x.vhd y.vhd
run imgtool create -f vhd -o uuid=12 x.vhd 1M
run imgtool create -f vhd -o subformat=differencing x.vhd 1M
run imgtool snapshot create a.vhd@one
