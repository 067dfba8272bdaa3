# bench: runs what it is told, and only writes when told.
imgtool create a.limg 16M
random_bytes 70 4000000 | imgtool write a.limg
before=$(content a.limg)
imgtool bench --json -c 1000 -d 2 --random --seed 7 a.limg >out
json 'sorted(d)' <out
json 'd["operation"], d["count"], d["depth"], d["request_bytes"], d["random"], d["iops"] > 0, 0 < d["p50_us"] <= d["p99_us"] <= d["max_us"]' <out
imgtool bench -s 64K -c 100 a.limg | sed -E 's/[0-9]+\.[0-9]+|[0-9]+ req/N/g'
same untouched "$(content a.limg)" "$before"
imgtool bench --json -w -s 4K -c 500 -d 2 --flush-interval 50 --random a.limg | json 'd["operation"], d["flush_interval"]'
[[ $(content a.limg) != "$before" ]] || fail "nothing was written"
imgtool bench -w -s 4K -c 64 --offset 1M --step 8K a.limg >/dev/null
sound a.limg
# The same seed writes the same places whatever the depth.
imgtool create one.limg 16M
imgtool create two.limg 16M
imgtool bench -w -c 300 --random --seed 3 -d 1 one.limg >/dev/null
imgtool bench -w -c 300 --random --seed 3 -d 4 two.limg >/dev/null
same places "$(imgtool map two.limg | awk '{ print $1, $2, $4 }')" "$(imgtool map one.limg | awk '{ print $1, $2, $4 }')"
run imgtool bench -s 32M a.limg
run imgtool bench -w a.limg@x
