# streamOptimized VMDK: written byte for byte as it has to be, into files and pipes, and read back by others; both
# dialects read; what is cut off or damaged is refused; memory is bounded.
need qemu-img
/usr/bin/python3 -c 'import pyvmdk' 2>/dev/null || skip "python3-libvmdk is not installed"
judge=(/usr/bin/python3 "$SRCDIR/tests/interop/vmdk_stream_reader.py")
stream=(-O vmdk -o subformat=streamOptimized)
# Three tables, some of which have nothing; text, noise, holes and zeros; an end inside a grain.
truncate -s 70001K a.raw
random_bytes 1 3000000 | dd of=a.raw bs=64K seek=30 conv=notrunc status=none
seq 1 300000 | dd of=a.raw bs=512 seek=130900 conv=notrunc status=none
dd if=/dev/zero of=a.raw bs=64K seek=600 count=20 conv=notrunc status=none
truncate -s 70001K a.raw

for j in 1 2 7; do
	imgtool convert -j $j "${stream[@]}" a.raw a$j.vmdk
	"${judge[@]}" strict a$j.vmdk
	qemu-img compare -q -f vmdk -F raw a$j.vmdk a.raw
	imgtool compare -q a$j.vmdk a.raw
	run imgtool check -q a$j.vmdk
	same "content of a$j" "$("${judge[@]}" hash a$j.vmdk)" "$(sha a.raw)"
done
# It is the same file but for its identifiers, whoever made it and whatever it went through.
imgtool convert "${stream[@]}" a.raw - | cat >pipe.vmdk
imgtool convert -q a.raw a.limg
imgtool convert "${stream[@]}" a.limg - >file.vmdk
for i in a7 pipe file; do
	"${judge[@]}" strict $i.vmdk
	same "length of $i" "$(stat -c %s $i.vmdk)" "$(stat -c %s a1.vmdk)"
	cmp <(tail -c +65537 $i.vmdk) <(tail -c +65537 a1.vmdk)
done
imgtool compare -q pipe.vmdk a.limg
tar -cf - a1.vmdk | tar -xOf - | cmp - a1.vmdk
size=$(imgtool measure --json "${stream[@]}" a.raw | json 'd["required_bytes"]')
((size >= $(stat -c %s a1.vmdk))) || fail "measure promised less"
# Sparse stays sparse, compressed is told.
imgtool map --json a1.vmdk | json 'sum(e["length"] for e in d["extents"] if e["data"]) < 6 << 20'
imgtool info --json a1.vmdk | json '(d["virtual_size"], d["compression"], d["format_specific"]["footer"])'

# libvmdk, which finds the extent by its name.
cat >libvmdk.py <<'PY'
import hashlib, pyvmdk, sys
disk, digest = pyvmdk.handle(), hashlib.sha256()
disk.open(sys.argv[1])
disk.open_extent_data_files()
left = disk.get_media_size()
while left:
    data = disk.read_buffer(min(left, 1 << 20))
    digest.update(data)
    left -= len(data)
print(digest.hexdigest())
PY
same "what libvmdk reads" "$(/usr/bin/python3 libvmdk.py a7.vmdk)" "$(sha a.raw)"

# Levels, and options that say what is in the descriptor.
imgtool convert -c zlib:1 "${stream[@]}" a.raw fast.vmdk
imgtool convert -c zlib:9 "${stream[@]}" -o adapter_type=ide,hwversion=13 a.raw best.vmdk
"${judge[@]}" strict best.vmdk
grep -aq 'ddb.adapterType = "ide"' best.vmdk
(($(stat -c %s best.vmdk) < $(stat -c %s fast.vmdk))) || fail "the level does nothing"
run imgtool convert -c zlib:10 "${stream[@]}" a.raw b.vmdk
run imgtool convert -c zstd "${stream[@]}" a.raw b.vmdk
# A size that is no multiple of anything but a sector, the smallest, and none.
for n in 1 127 128 129 65535 65536 65537; do
	truncate -s $((n * 512)) n.raw
	printf x | dd of=n.raw bs=1 seek=$((n * 512 - 1)) conv=notrunc status=none
	imgtool convert --force -q "${stream[@]}" n.raw n.vmdk
	"${judge[@]}" strict n.vmdk
	qemu-img compare -q n.vmdk n.raw
	imgtool compare -q n.vmdk n.raw
done
# Empty, made by create; and written only by convert.
run imgtool create -f vmdk -o subformat=streamOptimized e.vmdk 1G
"${judge[@]}" strict e.vmdk
(($(stat -c %s e.vmdk) < 70000)) || fail "an empty image is large"
qemu-img info e.vmdk | grep 'virtual size'
imgtool check -q e.vmdk
for verb in "write e.vmdk" "resize e.vmdk 2G" "create -f vmdk -o subformat=streamOptimized -b a.limg o.vmdk" "convert -O vmdk a.raw -"; do
	# shellcheck disable=SC2086 # words
	! imgtool $verb </dev/null >out 2>err || fail "$verb: it was done"
	(($(wc -l <err) == 1)) || fail "$(cat err)"
done

# Of qemu-img: its tables stand at the head, twice.
qemu-img convert -O vmdk -o subformat=streamOptimized a.raw q.vmdk
"${judge[@]}" verify q.vmdk
imgtool compare -q q.vmdk a.raw
run imgtool check -q q.vmdk
imgtool info --json q.vmdk | json 'd["format_specific"]["footer"]'

# Cut off anywhere: one line, and never zeros.
bytes=$(stat -c %s a1.vmdk)
for cut in $((bytes - 1)) $((bytes - 512)) $((bytes / 2)) 70000; do
	head -c $cut a1.vmdk >cut.vmdk
	expect 4 imgtool checksum cut.vmdk
	grep -q 'the file ends without the footer' err || fail "$(cat err)"
	(($(wc -l <err) == 1)) || fail "$(cat err)"
done
head -c $(($(stat -c %s q.vmdk) / 2)) q.vmdk >cut.vmdk
expect 4 imgtool checksum cut.vmdk
expect 4 imgtool check cut.vmdk
# A bit of a grain, and of its marker.
cp a1.vmdk bad.vmdk
flip bad.vmdk 70000
expect 4 imgtool checksum bad.vmdk
expect 4 imgtool check bad.vmdk
grep -o 'VMDK-4[0-9]' out
cp a1.vmdk bad.vmdk
flip bad.vmdk 65537
expect 4 imgtool check bad.vmdk
grep -o 'VMDK-4[0-9]' out

# What is written takes little memory, however much it is and however many do it.
truncate -s 40G big.raw
random_bytes 9 60000000 | dd of=big.raw bs=1M seek=3000 conv=notrunc status=none
cat >peak.py <<'PY'
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=open("big.vmdk", "wb"))
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
PY
peak=$(/usr/bin/python3 peak.py "${tool[@]}" convert --sandbox=off -j 8 "${stream[@]}" big.raw -)
# What a wrapper or a sanitizer takes is none of ours.
[[ -n ${IMGTOOL_WRAPPER:-} ]] || grep -qa __asan_init "$IMGTOOL" || ((peak < 64 * 1024)) || fail "$peak KiB"
imgtool compare -q big.vmdk big.raw
