# The native format: made small, described in full, converted to and from raw without a change.
run imgtool create a.limg 16M
run imgtool info a.limg
run imgtool info --json a.limg
imgtool info --json a.limg | json 'sorted(d)'
(($(stat -c %s a.limg) < 1 << 20)) || fail "an empty image has $(stat -c %s a.limg) bytes"
run imgtool create huge.limg 16T
(($(stat -c %s huge.limg) < 1 << 20)) || fail "an empty image of 16 TiB has $(stat -c %s huge.limg) bytes"
run imgtool create none.limg 0
run imgtool info --json none.limg | grep virtual_size
run imgtool create odd.limg 513
run imgtool create a.limg 1M
run imgtool create --force -o block_size=16K,compression=zlib a.limg 16M
imgtool info --json a.limg | json '[d[k] for k in ("block_size", "compression")]'
run imgtool create -o help
run imgtool create -o nonsense=1 b.limg 1M
run imgtool create -o block_size=5K b.limg 1M
sound a.limg huge.limg none.limg

truncate -s 16M a.raw
random_bytes 10 3000000 | dd of=a.raw bs=64K seek=2M oflag=seek_bytes conv=notrunc status=none
{ yes "compressible text" || true; } | head -c 5000000 | dd of=a.raw bs=64K seek=8000123 oflag=seek_bytes conv=notrunc status=none
want=$(sha a.raw)
for how in "" "-c zstd" "-c zstd:9" "-c zlib" "-c zlib:1 -o unit_size=1M" "-c none" "-o block_size=64K" "-c zstd -j 1"; do
	# shellcheck disable=SC2086
	run imgtool convert --force $how a.raw b.limg
	same "content $how" "$(content b.limg)" "$want"
	sound b.limg
	expect 0 imgtool compare a.raw b.limg
	imgtool info --json b.limg | json '[d[k] for k in ("format", "compression", "dirty", "corrupt", "virtual_size")]'
	run imgtool convert --force b.limg back.raw
	cmp a.raw back.raw
done
imgtool convert --force a.raw plain.limg
imgtool convert --force -c zstd a.raw small.limg
(($(stat -c %s small.limg) < $(stat -c %s plain.limg) - 4000000)) || fail "zstd saved nothing"
data=$(imgtool map --json a.raw | json 'sum(e["length"] for e in d["extents"] if e["data"])')
(($(stat -c %b plain.limg) * 512 <= data + data / 100 + (1 << 20))) || fail "$(stat -c %b plain.limg) blocks for $data bytes of data"
cmp <(imgtool read small.limg --offset 3M --length 6M) <(tail -c +$((3 * 1048576 + 1)) a.raw | head -c 6M)

# map agrees with the content, and knows what is compressed.
imgtool map --json small.limg >map
json 'sum(e["length"] for e in d["extents"]) == d["virtual_size"], any(e["compressed"] for e in d["extents"])' <map
imgtool map --json plain.limg >map
/usr/bin/python3 - <<'PY'
import json
d = json.load(open("map"))
data, host = open("a.raw", "rb").read(), open("plain.limg", "rb").read()
for e in d["extents"]:
    part = data[e["start"]:e["start"] + e["length"]]
    assert not (e["zero"] and any(part)), e
    if e["offset"] is not None:
        assert host[e["offset"]:e["offset"] + e["length"]] == part, e
assert any(e["offset"] is not None for e in d["extents"])
PY
required=$(imgtool measure --json a.raw | json 'd["required_bytes"]')
takes=$(($(stat -c %b plain.limg) * 512))
((takes <= required && takes >= required - required / 10 - (4 << 20))) || fail "measure said $required, the image takes $takes"
run imgtool write plain.limg --offset 15M <<<hello
run imgtool read plain.limg --offset 15M --length 6
sound plain.limg
ls
