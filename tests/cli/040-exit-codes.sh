# What scripts rely on. 7 (key) has no cause yet: no format of this version has keys.
imgtool create a.limg 1M
cp a.limg b.limg
imgtool write b.limg <<<x
random_bytes 80 4096 >raw
expect 0 imgtool compare a.limg a.limg
expect 1 imgtool compare a.limg b.limg
expect 2 imgtool compare a.limg
expect 3 imgtool compare a.limg nowhere
expect 4 imgtool compare -f limg raw a.limg
exec 3> >(expect 0 imgtool write a.limg; touch closed)
wait_for 10 eval 'imgtool lock --json a.limg | grep -q "\"writes\": true"'
expect 5 imgtool compare a.limg b.limg
exec 3>&-
wait_for 10 test -e closed
expect 0 imgtool compare a.limg a.limg
expect 6 imgtool write raw </dev/null
expect 6 imgtool create a.limg 1M
expect 6 imgtool resize a.limg 4K
expect 0 imgtool doctor --sandbox=auto
expect 0 imgtool doctor --json --sandbox=off
json '[f["name"] for f in d["findings"] if f["verdict"] == "broken"]' <out
# what was printed must have got out
expect 3 bash -c '"$@" >/dev/full' - "${tool[@]}" info a.limg
cat err
expect 3 bash -c '"$@" >/dev/full' - "${tool[@]}" map --json a.limg
expect 3 bash -c '"$@" >/dev/full' - "${tool[@]}" read a.limg
