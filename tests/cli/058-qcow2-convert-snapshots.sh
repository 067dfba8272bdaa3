# Conversions between qcow2 and limg keep the snapshots when asked, and say so when they do not.
need qemu-img qemu-io

judged()
{
	qemu-img check -q "$1" >judge.log 2>&1 || { cat judge.log; fail "qemu-img check finds fault with $1"; }
	expect 0 imgtool check -q "$1"
	rm judge.log
}

digest()
{
	imgtool checksum -q "$1" | cut -d' ' -f1
}

truncate -s 16M a.raw
random_bytes 50 9000000 | dd of=a.raw bs=64K conv=notrunc status=none
qemu-img convert -f raw -O qcow2 -c a.raw a.qcow2
qemu-img snapshot -c one a.qcow2
random_bytes 51 1000000 | imgtool write a.qcow2 --offset 1234567
qemu-img snapshot -c two a.qcow2
qemu-io -f qcow2 -c 'write -q -z 0 2M' -c 'write -q -P 9 10M 64k' a.qcow2 >qemu-io.log || fail "qemu-io: $(cat qemu-io.log)"
imgtool resize a.qcow2 20M
imgtool snapshot create a.qcow2@three
random_bytes 52 500000 | imgtool write a.qcow2 --offset 18M

echo "== left out"
run imgtool convert a.qcow2 head.limg
run imgtool convert -O qcow2 a.qcow2 head.qcow2
run imgtool convert -q -O qcow2 a.qcow2 head2.qcow2
run imgtool compare head.limg head2.qcow2
# qemu-img leaves them out in silence.
run qemu-img convert -f qcow2 -O qcow2 a.qcow2 head3.qcow2
run imgtool snapshot list head3.qcow2

echo "== kept"
run imgtool convert --snapshots -c zstd a.qcow2 all.limg
run imgtool convert --snapshots -O qcow2 all.limg back.qcow2
run imgtool convert --snapshots -O qcow2 -o cluster_size=4096 a.qcow2 again.qcow2
run imgtool convert --snapshots -O qcow2 -c zstd all.limg packed.qcow2
sound all.limg
for file in back.qcow2 again.qcow2 packed.qcow2; do
	judged $file
done
for file in all.limg back.qcow2 again.qcow2 packed.qcow2; do
	for state in "" @one @two @three; do
		same "$file$state" "$(digest "$file$state")" "$(digest "a.qcow2$state")"
	done
	imgtool snapshot list --json $file | json '[(s["name"], s["virtual_size"]) for s in d["snapshots"]]'
done
qemu-img info --output=json back.qcow2 | json '[(s["id"], s["name"]) for s in d["snapshots"]]'
# What is common is stored once.
(($(stat -c %s back.qcow2) < 16000000)) || fail "back.qcow2 has $(stat -c %s back.qcow2) bytes"

echo "== refused before anything is written"
qemu-img snapshot -c one a.qcow2
run imgtool convert --snapshots a.qcow2 twice.limg
imgtool snapshot rename a.qcow2@4 'a second one'
qemu-img snapshot -c not/ours a.qcow2
run imgtool convert --snapshots a.qcow2 twice.limg
run imgtool convert --snapshots -O qcow2 -o compat=0.10 all.limg old.qcow2
ls
