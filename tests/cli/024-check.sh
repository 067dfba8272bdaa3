# check: 0 when clean; 4 with the place after one byte was changed; the read that meets it fails and names it.
need strace
random_bytes 17 3000000 >a.raw
truncate -s 4M a.raw
imgtool convert a.raw a.limg
imgtool snapshot create a.limg@kept
random_bytes 18 8192 | imgtool write a.limg --offset 1M
run imgtool check a.limg | sed 's/[0-9.]* [KM]iB/SIZE/g'
imgtool check --json a.limg | json 'd["clean"], d["damage"], d["findings"]'
run imgtool check -q a.limg

# A data block of the snapshot only: under what the head has overwritten.
host=$(imgtool map --json a.limg@kept | json '[e["offset"] + (1 << 20) - e["start"] for e in d["extents"] if e["start"] <= 1 << 20 < e["start"] + e["length"]][0]')
cp a.limg broken.limg
flip broken.limg $((host + 100))
expect 4 imgtool check broken.limg
sed "s/$(printf 0x%x "$host")/HOST/" out
expect 4 imgtool check --json broken.limg
json 'd["clean"], d["damage"], [(f["kind"], f["snapshot"], f["guest_offset"], f["rule"], f["repaired"]) for f in d["findings"]]' <out
json 'd["findings"][0]["file_offset"]' <out | grep -qx "$host"
expect 4 imgtool read broken.limg@kept --offset 1M --length 1
sed "s/$(printf 0x%x "$host")/HOST/" err
imgtool read broken.limg | cmp - <(imgtool read a.limg)
expect 4 imgtool convert broken.limg@kept x.raw
expect 4 imgtool check -q broken.limg
[[ ! -s out && ! -s err ]] || fail "-q is not quiet"
expect 0 imgtool check --metadata -q broken.limg

# Garbage in the superblock: one copy is a spare that repair restores; all of them are the end.
cp a.limg broken.limg
flip broken.limg 60
flip broken.limg 4156
expect 4 imgtool check broken.limg
cut -d: -f1 out | sort | uniq -c
same content "$(imgtool checksum broken.limg | cut -d' ' -f1)" "$(imgtool checksum a.limg | cut -d' ' -f1)"
expect 0 imgtool check --repair broken.limg
expect 0 imgtool check broken.limg
sound broken.limg
for off in 60 4156 $((192 * 4096 + 60)) $((193 * 4096 + 60)); do
	flip broken.limg $off
done
expect 4 imgtool check -f limg broken.limg
cat err out
expect 4 imgtool info -f limg broken.limg

# The magic of either slot: the current one is reported, the other one is not in use.
for off in 0 4096; do
	cp a.limg broken.limg
	flip broken.limg $off
	imgtool check broken.limg | cut -d: -f1 || true
	imgtool read broken.limg | cmp - <(imgtool read a.limg)
done | sort

# A file that was cut short, and one that is something else.
head -c 2000000 a.limg >cut.limg
expect 4 imgtool check cut.limg
cat err out | sed 's/of 0x[0-9a-f]* are/of SIZE are/'
expect 4 imgtool check --json cut.limg
json 'd["clean"], d["findings"][0]["kind"]' <out
expect 4 imgtool info -f limg a.raw
cat err
run imgtool check a.raw
