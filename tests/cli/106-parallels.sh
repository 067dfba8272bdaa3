# SPDX-License-Identifier: MIT
# Parallels images: made, read and written in turns with qemu-img; options, resize, refusals.
need qemu-img qemu-io
digest() { imgtool checksum -q "$@" 2>/dev/null | cut -d' ' -f1; }
reader() { /usr/bin/python3 "$SRCDIR/tests/interop/parallels_reader.py" "$@"; }
judged()
{
	qemu-img check -q -f parallels "$1" >log 2>&1 || { cat log; fail "qemu-img check $1"; }
	expect 0 imgtool check -q "$1"
	reader verify "$1" || fail "the reader finds fault with $1"
	qemu-img convert -f parallels -O raw "$1" judge.raw
	same "qemu-img's content" "$(digest -f raw judge.raw)" "$(digest "$1")"
	same "the reader's content" "$(reader hash "$1" | cut -d' ' -f1)" "$(digest "$1")"
	rm judge.raw
}

run imgtool create -f parallels -o help
run imgtool create -f parallels a.hdd 20M
imgtool info --json a.hdd | json 'd["format"], d["virtual_size"], d["block_size"], d["dirty"], d["format_specific"]'
judged a.hdd
random_bytes 100 3000000 >junk
imgtool write -q a.hdd --offset 1500000 <junk
judged a.hdd
qemu-io -f parallels -c 'write -q -P 7 512k 3M' -c 'write -q -P 9 9M 2M' a.hdd >log || fail "$(cat log)"
judged a.hdd
head -c 700000 junk | imgtool write -q a.hdd --offset 18M
judged a.hdd

# Both directions, both versions, clusters of all sizes.
for options in version=1 cluster_size=64K cluster_size=63K,version=1 cluster_size=512 cluster_size=32256,version=2; do
	imgtool convert -q -O parallels -o $options a.hdd b.hdd --force
	judged b.hdd
	same "content with $options" "$(digest b.hdd)" "$(digest a.hdd)"
	imgtool resize -q b.hdd 33M
	head -c 100000 junk | imgtool write -q b.hdd --offset 31M
	judged b.hdd
	imgtool resize -q --shrink b.hdd 20M
	judged b.hdd
	same "content with $options, resized" "$(digest b.hdd)" "$(digest a.hdd)"
done
qemu-img convert -f parallels -O parallels -o cluster_size=128K a.hdd b.hdd
judged b.hdd
head -c 100000 junk | imgtool write -q b.hdd --offset 7777777
judged b.hdd
run imgtool measure -O parallels --size 1G
run imgtool measure -O parallels a.hdd

# Growing over the room of a table that QEMU leaves none for, and shrinking.
qemu-img create -q -f parallels -o cluster_size=4096 d.hdd 4M
imgtool write -q d.hdd --offset 0 <junk
before=$(digest d.hdd)
for size in 4M+512 5M 13M 300M; do
	case $size in *+*) imgtool resize -q d.hdd +512 ;; *) imgtool resize -q d.hdd $size ;; esac
	judged d.hdd
	head -c 9000 junk | imgtool write -q d.hdd --offset 4180000
done
imgtool write -q d.hdd --offset 200M <junk
imgtool resize -q --shrink d.hdd 3M
judged d.hdd
[[ $(stat -c %s d.hdd) -lt 4000000 ]] || fail "the file keeps what the disk lost"
imgtool resize -q d.hdd 4M
same "content" "$(digest d.hdd)" "$before"
run imgtool resize d.hdd 1M
imgtool map a.hdd

# What cannot be.
run imgtool create -f parallels f.hdd 0
run imgtool create -f parallels -o cluster_size=1000 f.hdd 1M
run imgtool create -f parallels -o version=3 f.hdd 1M
run imgtool create -f parallels -o version=1 f.hdd 2T
run imgtool create -f parallels -o cluster_size=512 f.hdd 1P
run imgtool create -f parallels -o block_size=4K f.hdd 1M
run imgtool create -f parallels -b a.hdd f.hdd
run imgtool snapshot create a.hdd@one
run imgtool checksum a.hdd@one
