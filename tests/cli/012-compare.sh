# compare: 0 same, 1 different, with the place.
truncate -s 4M a.raw
random_bytes 4 1000000 | dd of=a.raw conv=notrunc status=none
cp a.raw b.raw
run imgtool compare a.raw b.raw
run imgtool compare --json a.raw b.raw
flip b.raw 700001
run imgtool compare a.raw b.raw
run imgtool compare --json a.raw b.raw
cmp a.raw b.raw || true
flip b.raw 0
flip b.raw 1048575
flip b.raw 1048576
flip b.raw 4194303
run imgtool compare --all a.raw b.raw
run imgtool compare --all --json a.raw b.raw
run imgtool compare -q --all a.raw b.raw
cp a.raw longer.raw
truncate -s 6M longer.raw
run imgtool compare a.raw longer.raw
run imgtool compare --json longer.raw a.raw
flip longer.raw 6000000
run imgtool compare longer.raw a.raw
run imgtool compare a.raw nowhere.raw
run imgtool compare -f raw -F limg a.raw b.raw
# What cannot be read is named, whichever it is.
imgtool convert -q a.raw c.limg
cp c.limg damaged.limg
imgtool create -q -f limg -b damaged.limg above.limg
at=$(imgtool map --json c.limg | json 'next(e["offset"] for e in d["extents"] if e["data"])')
flip damaged.limg "$at"
run imgtool compare c.limg damaged.limg
run imgtool compare damaged.limg c.limg
run imgtool compare c.limg above.limg
run imgtool convert damaged.limg copy.raw
