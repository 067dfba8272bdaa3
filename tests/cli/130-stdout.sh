# convert to stdout: from front to back, into pipes and files; what it refuses, and what a broken pipe is.
truncate -s 20M a.raw
random_bytes 5 3000000 | dd of=a.raw bs=64K seek=20 conv=notrunc status=none
imgtool convert -q a.raw a.limg
imgtool convert -O raw a.limg - | cmp - a.raw
imgtool convert -O raw -j 1 -f raw a.raw - >copy
cmp copy a.raw
# As a member of an archive: the size is known before, and it comes to just that.
size=$(imgtool measure --json -O raw a.limg | json 'd["required_bytes"]')
imgtool convert -O raw a.limg - | (($(wc -c) == size)) || fail "measure told another size"
(echo header; imgtool convert -O raw a.limg -; echo trailer) >framed
(($(stat -c %s framed) == size + 15)) || fail "it did not write where it stood"
cmp -n "$size" -i 7:0 framed a.raw
# What waits for room waits.
imgtool convert -O raw a.limg - | (sleep 0.3; sha256sum) | cut -d' ' -f1 | grep -qx "$(sha a.raw)"
mkfifo fifo
cat fifo >through &
imgtool convert -O raw a.limg - >fifo
wait $!
cmp through a.raw

# A reader that goes away, a full disk.
status=0
imgtool convert -O raw a.limg - 2>err | head -c 100000 | cmp -n 100000 - a.raw || status=${PIPESTATUS[0]}
((status == 3)) || fail "a broken pipe is exit $status"
grep -qx 'imgtool: stdout: the reader has gone after 0x[0-9a-f]* bytes.*' err || fail "$(cat err)"
(($(wc -l <err) == 1))
status=0
imgtool convert -O raw a.limg - 2>err >/dev/full || status=$?
cat err
((status == 3)) || fail "a full disk is exit $status"

# Nobody reads: a signal ends it all the same.
# shellcheck disable=SC2217 # it holds the other end
sleep 20 <fifo &
sleeper=$!
"${tool[@]}" convert -O raw a.limg - >fifo &
writer=$!
sleep 0.3
kill -TERM $writer
status=0
wait $writer || status=$?
kill $sleeper
((status == 143)) || fail "a signal made it exit $status"

run imgtool convert a.limg -
run imgtool convert -O limg a.limg -
run imgtool convert -O qcow2 a.limg -
run imgtool convert -O raw -o preallocation=full a.limg -
run imgtool convert -O raw -b a.limg a.limg -
run imgtool convert -O raw --force a.limg -
run imgtool convert -O raw --snapshots a.limg -
run imgtool convert -O raw nowhere.raw -
if command -v script >/dev/null; then
	script -qec "${tool[*]} convert -O raw a.limg -" /dev/null >terminal || (($? == 2))
	grep -q "an image is nothing for a terminal" terminal || fail "it wrote to a terminal"
fi
# A file of that name has a longer one.
run imgtool convert -O raw a.limg ./-
cmp ./- a.raw
# Notices go beside it.
imgtool snapshot create a.limg@one
imgtool convert -O raw a.limg - 2>err | cmp - a.raw
cat err
