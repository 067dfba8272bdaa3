# raw: made sparse, never guessed for writing, grown and shrunk, read and written at any offset.
run imgtool create -f raw a.raw 10M
run imgtool info a.raw
run imgtool info --json a.raw
run imgtool create a.raw 1M
run imgtool create --force a.raw 12M
stat -c %s a.raw
[[ $(stat -c %b a.raw) -lt 64 ]] || fail "not sparse"

random_bytes 1 3000001 >part
expect 6 imgtool write a.raw --offset 12345 <part
cat err
run imgtool write -f raw a.raw --offset 12345 <part
run imgtool read a.raw --offset 12345 --length 3000001 >back
tail -c 3000001 back | cmp - part || { sed -n 1p back; fail "read is not what was written"; }
head -c 12345 /dev/zero >want
cat part >>want
truncate -s 12M want
cmp a.raw want
imgtool read a.raw | cmp - want
imgtool read a.raw --length 0 | wc -c
imgtool read a.raw --offset 12M | wc -c
qemu-img compare -f raw -F raw a.raw want

# Past the end: a file is refused before anything is written, a pipe where it happens.
before=$(sha a.raw)
run imgtool write -f raw a.raw --offset 11M <part
[[ $(sha a.raw) == "$before" ]] || fail "something was written"
run imgtool write -f raw a.raw --offset 13M </dev/null
run imgtool write -f raw a.raw --offset 10M < <(cat part)
run imgtool read a.raw --offset 12M --length 1
run imgtool read a.raw --offset 13M
head -c 2M part | imgtool write -f raw a.raw --offset 10M
imgtool read a.raw --offset 10M | cmp - <(head -c 2M part)

run imgtool resize a.raw 20M
run imgtool resize -f raw a.raw +8M
stat -c %s a.raw
run imgtool resize -f raw a.raw -1M
run imgtool resize -f raw a.raw -40M
run imgtool resize -f raw --shrink a.raw -10M
stat -c %s a.raw
run imgtool resize -f raw a.raw 0x1000000
run imgtool resize -f raw a.raw 1000001
stat -c %s a.raw
ls
