# Names and limits of snapshots in qcow2, beside qemu-img: what it lets happen is refused, and what it left behind is reachable.
need qemu-img qemu-io

judged()
{
	qemu-img check -q "$1" >judge.log 2>&1 || { cat judge.log; fail "qemu-img check finds fault with $1"; }
	expect 0 imgtool check -q "$1"
	rm judge.log
}

names()
{
	imgtool snapshot list --json "$1" | json '[(s["id"], s["name"]) for s in d["snapshots"]]'
}

truncate -s 8M a.raw
random_bytes 33 3000000 | dd of=a.raw bs=64K conv=notrunc status=none
qemu-img convert -f raw -O qcow2 a.raw a.qcow2

echo "== the same name twice"
run qemu-img snapshot -c day a.qcow2
run qemu-img snapshot -c day a.qcow2
names a.qcow2
run imgtool snapshot create a.qcow2@day
run imgtool snapshot create a.qcow2@night
run imgtool snapshot rename a.qcow2@night day
names a.qcow2
# The first of the name; by its id the other one.
run imgtool snapshot rename a.qcow2@2 'day 2'
names a.qcow2
run imgtool snapshot rename a.qcow2@day day
judged a.qcow2

echo "== names that are none of ours"
qemu-img snapshot -c "$(printf 'a/b@c\e[31m')" a.qcow2
qemu-img snapshot -c "$(printf '%0.sx' {1..255})" a.qcow2
imgtool snapshot list a.qcow2 | sed 's/x\{200,\}/x.../' | sed 's/  */ /g'
imgtool snapshot list --json a.qcow2 >list.json
json '[s["name"][:12] for s in d["snapshots"]]' <list.json
imgtool read a.qcow2@4 --length 4096 >piece
cmp piece <(head -c 4096 a.raw)
run imgtool snapshot rename a.qcow2@4 fourth
run imgtool snapshot delete a.qcow2@5
run imgtool snapshot delete a.qcow2@day
run imgtool snapshot delete a.qcow2@9
names a.qcow2
judged a.qcow2

echo "== saved before it is left, whatever it is called by"
imgtool write a.qcow2 --offset 1M <<<changed
run imgtool revert --save left a.qcow2@2
names a.qcow2
imgtool read a.qcow2@left --offset 1M --length 7
echo
imgtool compare -q a.raw a.qcow2
judged a.qcow2

echo "== refcounts that cannot count two"
qemu-img convert -f raw -O qcow2 -o refcount_bits=1 a.raw one.qcow2
before=$(sha one.qcow2)
run imgtool snapshot create one.qcow2@s
same one.qcow2 "$(sha one.qcow2)" "$before"
judged one.qcow2
qemu-img convert -f raw -O qcow2 -o refcount_bits=2 a.raw two.qcow2
run imgtool snapshot create two.qcow2@s1
run imgtool snapshot create two.qcow2@s2
before=$(imgtool checksum -q two.qcow2)
run imgtool snapshot create two.qcow2@s3
same two.qcow2 "$(imgtool checksum -q two.qcow2)" "$before"
names two.qcow2
judged two.qcow2
# At the limit, going back and deleting still work.
imgtool write two.qcow2 --offset 0 <<<changed
run imgtool revert two.qcow2@s2
run imgtool revert two.qcow2@s1
judged two.qcow2
run imgtool snapshot delete two.qcow2@s1
run imgtool snapshot create two.qcow2@s4
imgtool compare -q a.raw two.qcow2
judged two.qcow2

echo "== data in another file"
qemu-img create -q -f qcow2 -o data_file=ext.raw ext.qcow2 1M
run imgtool snapshot create ext.qcow2@s
