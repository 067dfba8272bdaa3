# snapshot, break, revert: the day's work. Every state is bit-identical whenever it is looked at.
truncate -s 12M a.raw
random_bytes 11 7000000 | dd of=a.raw bs=64K conv=notrunc status=none
imgtool convert -c zstd a.raw a.limg
first=$(sha a.raw)
run imgtool snapshot create a.limg@before
random_bytes 12 1000000 >junk
run imgtool write a.limg --offset 0 <junk
run imgtool write a.limg --offset 5000001 <junk
cp a.raw b.raw
dd if=junk of=b.raw conv=notrunc status=none
dd if=junk of=b.raw bs=64K seek=5000001 oflag=seek_bytes conv=notrunc status=none
second=$(sha b.raw)
same head "$(content a.limg)" "$second"
same before "$(content a.limg@before)" "$first"
run imgtool compare a.raw a.limg@before
run imgtool compare -q a.raw a.limg
run imgtool snapshot create a.limg@before
run imgtool snapshot create 'a.limg@bad/name'
run imgtool snapshot create a.limg@after
run imgtool snapshot list a.limg | sed 's/  */ /g'
imgtool snapshot list --json a.limg | json '[(s["id"], s["name"], s["parent"], s["virtual_size"]) for s in d["snapshots"]]'
imgtool snapshot list --json a.limg | json 'sorted(d["snapshots"][0])'
imgtool info --json a.limg | json '[s["name"] for s in d["snapshots"]]'
imgtool info a.limg | grep -A 3 '^snapshots' | sed 's/  */ /g'
imgtool info --json a.limg@before | json 'd["snapshot"], d["virtual_size"], d["snapshots"]'

run imgtool revert a.limg@before
run imgtool compare a.raw a.limg
run imgtool revert a.limg@after
same after "$(content a.limg)" "$second"
imgtool write a.limg --offset 1M <<<unsaved
third=$(content a.limg)
run imgtool revert --save kept a.limg@before
same reverted "$(content a.limg)" "$first"
same kept "$(content a.limg@kept)" "$third"
run imgtool revert --save other a.limg@nonsense
run imgtool revert --save kept a.limg@before
run imgtool snapshot rename a.limg@kept trial
run imgtool snapshot rename a.limg@trial before
run imgtool snapshot rename a.limg@nonsense x
run imgtool snapshot delete a.limg@nonsense
imgtool snapshot list --json a.limg | json '[s["name"] for s in d["snapshots"]]'
sound a.limg
run imgtool snapshot delete a.limg@after
run imgtool snapshot delete a.limg@before
same head "$(content a.limg)" "$first"
same trial "$(content a.limg@trial)" "$third"
run imgtool snapshot delete a.limg@trial
run imgtool snapshot list a.limg
same head "$(content a.limg)" "$first"
sound a.limg
run imgtool read a.limg@before --length 1

# Snapshots keep their own size.
run imgtool snapshot create a.limg@small
run imgtool resize a.limg +4M
run imgtool resize a.limg 1M
run imgtool resize --shrink a.limg 1M
imgtool info --json a.limg | json 'd["virtual_size"]'
same small "$(content a.limg@small)" "$first"
run imgtool revert a.limg@small
imgtool info --json a.limg | json 'd["virtual_size"]'
same head "$(content a.limg)" "$first"
sound a.limg
