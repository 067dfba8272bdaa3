# snapshot diff names what changed, all of it, and not much more.
truncate -s 16M a.raw
random_bytes 13 8000000 | dd of=a.raw bs=64K conv=notrunc status=none
imgtool convert a.raw a.limg
imgtool snapshot create a.limg@one
random_bytes 14 10000 | imgtool write a.limg --offset 1000000
imgtool snapshot create a.limg@two
random_bytes 15 4096 | imgtool write a.limg --offset 12M
head -c 65536 /dev/zero | imgtool write a.limg --offset 2M
run imgtool snapshot diff a.limg@one a.limg@two
run imgtool snapshot diff a.limg@two
run imgtool snapshot diff --json a.limg@two a.limg@one
run imgtool snapshot diff a.limg@two a.limg@two
run imgtool snapshot diff a.limg@one a.limg@nonsense
run imgtool snapshot diff a.raw@one
imgtool create b.limg 1M
run imgtool snapshot diff a.limg@one b.limg
run imgtool snapshot diff a.limg
# Everything that compare finds lies in a range of diff.
imgtool snapshot diff --json a.limg@one ./a.limg >extents
imgtool compare --all --json a.limg@one a.limg >ranges || true
/usr/bin/python3 - <<'PY'
import json
diff = [(e["start"], e["start"] + e["length"]) for e in json.load(open("extents"))["extents"]]
for r in json.load(open("ranges"))["ranges"]:
    assert any(a <= r["start"] and r["start"] + r["length"] <= b for a, b in diff), r
assert diff == sorted(diff) and sum(b - a for a, b in diff) < 200000
PY

# Two snapshots are compared beside a writer; the present state, which he changes, is not.
mkfifo hold
imgtool write a.limg --offset 0 <hold &
writer=$!
exec 3>hold
is_written() { imgtool lock a.limg | grep -q writes; }
wait_for 20 is_written
run imgtool snapshot diff a.limg@one a.limg@two
run imgtool snapshot diff a.limg@two
exec 3>&-
wait "$writer"
