# Who writes an image holds it: others are refused with his pid, and may look only on demand. QEMU's processes count.
need qemu-io
# valgrind gives the process another name
wrapped='s/memcheck-[a-z0-9-]*/imgtool/'
imgtool create -f raw a.raw 4M
run imgtool lock a.raw
run imgtool lock --json a.raw

mkfifo input
"${tool[@]}" write -f raw a.raw <input &
writer=$!
exec 3>input
printf abc >&3
wait_for 10 eval 'imgtool lock --json a.raw | grep -q "\"writes\": true"'
imgtool lock a.raw | sed "s/^ *$writer /PID /; $wrapped"
imgtool lock --json a.raw | sed "s/$writer/PID/; $wrapped"
expect 5 imgtool write -f raw a.raw </dev/null
grep -q "$writer" err || fail "the holder is not named: $(cat err)"
expect 5 imgtool convert a.raw b.raw
expect 5 imgtool resize -f raw a.raw +1M
run imgtool read -U a.raw --length 0
run imgtool read -q -U a.raw --length 0
expect 1 qemu-io -f raw -c 'write 0 512' a.raw
exec 3>&-
wait "$writer"
run imgtool lock a.raw
imgtool read a.raw --length 3
echo

# The other way round.
mkfifo commands
qemu-io -f raw a.raw <commands >/dev/null &
writer=$!
exec 3>commands
wait_for 10 eval 'imgtool lock --json a.raw | grep -q "\"writes\": true"'
imgtool lock a.raw | sed "s/^ *$writer /PID /; $wrapped"
expect 5 imgtool write -f raw a.raw </dev/null
exec 3>&-
wait "$writer"
run imgtool write -f raw a.raw </dev/null
run imgtool lock nowhere
