# convert says when it leaves snapshots behind, and keeps them when asked. An overlay can be the result.
truncate -s 16M base.raw
random_bytes 50 9000000 | dd of=base.raw bs=64K conv=notrunc status=none
imgtool convert base.raw a.limg
imgtool snapshot create a.limg@one
random_bytes 51 1000000 | imgtool write a.limg --offset 1234567
imgtool snapshot create a.limg@two
random_bytes 52 500000 | imgtool write a.limg --offset 10M
run imgtool convert a.limg head.limg
run imgtool convert -q a.limg head2.limg
run imgtool convert a.limg@one one.raw
cmp one.raw base.raw
run imgtool convert --snapshots -c zstd a.limg all.limg
for state in "" @one @two; do
	same "all$state" "$(content "all.limg$state")" "$(content "a.limg$state")"
done
imgtool snapshot list --json all.limg | json '[s["name"] for s in d["snapshots"]]'
run imgtool convert --snapshots a.limg all.raw
sound all.limg head.limg

# Only what differs from the parent.
run imgtool convert -b a.limg@one a.limg thin.limg
same thin "$(content thin.limg)" "$(content a.limg)"
(($(stat -c %b thin.limg) * 512 < 3000000)) || fail "thin.limg takes $(stat -c %b thin.limg) blocks"
sound thin.limg
run imgtool convert -b a.limg@one a.limg@one nothing.limg
imgtool map --json nothing.limg | json 'all(e["depth"] == 1 or not e["data"] for e in d["extents"])'
ls
