#!/usr/bin/env bash
# A soak: mixed load on a platform for minutes or hours, broker and clients on one host. Messages at all QoS over TCP, TLS,
# WebSocket and secure WebSocket, with clients that come and go, durable sessions, retained messages and wills; connects that are
# closed again; devices that send data and get commands; reads of the API. Every message, datapoint and command is checked by the
# scenario that sent it. What the broker's process holds is read every 10 s, and must stay flat; at the end the broker's ledger
# must balance, and nothing be left. Exit codes: 0 all of it is so, 1 something is not (it says what), 2 it could not be run (the
# sentence says what to change).
#
# Anonymous memory is what must be flat. Pages of the data file that are mapped are told beside it: datapoints are kept, so they
# grow, and the kernel takes them back when it needs room.
set -euo pipefail

# From when on a slope is judged: before, caches and tables still fill.
judged_s_min=300
samples_max=360
sample_s_max=10
# Of the time, not looked at.
warm_up=0.2
# Each thread of the API keeps what it has needed once, and there are more only when more calls come at the same time: an hour of few
# calls has that moment anywhere. So there are many at the beginning, for this part of the time.
crowd=0.1
crowd_s_max=60
crowd_readers=16
# Flat: the growth over the time looked at is below both what noise makes of it and this part of the mean.
noise_errors=3
noise_part=0.02

seconds=600
rate=1500
cores=
json=
report=
profile=release
binaries=

usage() {
  cat <<END
Usage: loadtest/soak.sh [options]

  --minutes N     minutes of load [10]; memory is judged from $((judged_s_min / 60)) on
  --seconds N     the same in seconds
  --rate N        messages a second between pairs of clients [$rate], beside some 300 of devices and others
  --cores N       threads of the broker [as many as there are CPUs]
  --json FILE     write the figures here as well, those of every scenario among them
  --report FILE   write a page with plots of the pairs' messages and the broker's memory
  --profile P     build with this profile of cargo [$profile]
  --binaries DIR  build nothing, take skein and skein-load from there
  --help          print this
END
}

refuse() {
  echo "soak.sh: $*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  flag=$1
  case $flag in
    --help) usage; exit 0 ;;
    --minutes | --seconds | --rate | --cores | --json | --report | --profile | --binaries) ;;
    *) refuse "there is no option $flag; --help prints those there are" ;;
  esac
  [ $# -ge 2 ] || refuse "$flag wants a value"
  value=$2
  shift 2
  case $flag in
    --json) json=$value; continue ;;
    --report) report=$value; continue ;;
    --profile) profile=$value; continue ;;
    --binaries) binaries=$(cd "$value" 2>/dev/null && pwd) || refuse "--binaries $value is no directory"; continue ;;
  esac
  [[ $value =~ ^[0-9]{1,6}$ ]] || refuse "$flag $value is no number of at most six digits"
  value=$((10#$value))
  [ "$value" -gt 0 ] || refuse "$flag must be more than 0"
  case $flag in
    --minutes) seconds=$((value * 60)) ;;
    --seconds) seconds=$value ;;
    --rate) rate=$value ;;
    --cores) cores=$value ;;
  esac
done
[ "$seconds" -ge 10 ] || refuse "--seconds $seconds is too short for a soak: give at least 10"
for file in "$json" "$report"; do
  [ -z "$file" ] || { : 2>/dev/null >"$file"; } || refuse "$file cannot be written"
done

directory=
broker=
declare -A running=()
clean_up() {
  local code=$? process
  trap - EXIT
  [ ${#running[@]} -eq 0 ] || kill "${running[@]}" 2>/dev/null || true
  if [ -n "$broker" ] && kill -0 "$broker" 2>/dev/null; then
    kill "$broker" 2>/dev/null || true
    for _ in $(seq 150); do
      kill -0 "$broker" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$broker" 2>/dev/null || true
  fi
  [ -z "$directory" ] || rm -rf "$directory"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# --- the broker -----------------------------------------------------------------------------------------------------------

if [ -z "$binaries" ]; then
  repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  (cd "$repository" && cargo build --profile "$profile" --workspace --locked)
  target=${CARGO_TARGET_DIR:-target}
  [[ $target = /* ]] || target=$repository/$target
  # The directory of cargo's dev profile has another name than the profile.
  binaries=$target/${profile/#dev/debug}
fi
for program in skein skein-load; do
  [ -x "$binaries/$program" ] || refuse "there is no $program in $binaries"
done

directory=$(mktemp -d)
data=$directory/data
"$binaries/skein" --access platform --bind 127.0.0.1 --data-dir "$data" --ready-file "$directory/ready" --mqtt-port 0 \
  --mqtts-port 0 --ws-port 0 --wss-port 0 --api-port 0 --api-rate 0 ${cores:+--cores "$cores"} >"$directory/log" 2>&1 &
broker=$!
for _ in $(seq 600); do
  [ ! -s "$directory/ready" ] || break
  if ! kill -0 "$broker" 2>/dev/null; then
    broker=
    refuse "the broker did not start: $(tail -n 1 "$directory/log")"
  fi
  sleep 0.1
done
[ -s "$directory/ready" ] || refuse "the broker was not ready within 60 s: $(tail -n 1 "$directory/log")"
# address NAME: of one of its ports.
address() {
  echo "127.0.0.1:$(grep -o "\"$1\": *[0-9]*" "$directory/ready" | grep -o '[0-9]*$')"
}
mqtt=$(address mqtt) mqtts=$(address mqtts) ws=$(address ws) wss=$(address wss) api=$(address api)

# account NAME: makes one, whose tokens stand in a file.
account() {
  "$binaries/skein" account --data-dir "$data" add --alias "$1" --json >"$directory/$1" ||
    refuse "an account could not be made, see above"
}
# of NAME KEY: of an account.
of() {
  grep -o "\"$2\": *\"[^\"]*" "$directory/$1" | sed 's/.*"//'
}

# --- what is read of it ---------------------------------------------------------------------------------------------------

# counted: its counters at this moment, one `name=count` a line; those that are 0 are not said.
counted() {
  local before
  before=$(grep -c 'counted so far' "$directory/log" || true)
  kill -USR1 "$broker" 2>/dev/null || return 1
  for _ in $(seq 300); do
    [ "$(grep -c 'counted so far' "$directory/log" || true)" -eq "$before" ] || break
    sleep 0.1
  done
  counters 'counted so far'
}
# counters WORDS: those of the last line of the log with these words.
counters() {
  grep "$1" "$directory/log" | tail -n 1 | grep -oE '[a-z_0-9]+=[0-9]+' || true
}
# Each core may have a table of descriptors of its own; one that has none counts that of the process again.
descriptors() {
  local thread tables=("/proc/$broker/fd")
  for thread in "/proc/$broker/task/"*; do
    [[ $(<"$thread/comm") != core-* ]] || tables+=("$thread/fd")
  done 2>/dev/null
  find "${tables[@]}" -mindepth 1 2>/dev/null | wc -l
}
threads() {
  find "/proc/$broker/task" -mindepth 1 -maxdepth 1 | wc -l
}
columns=(seconds anonymous mapped resident descriptors threads connections sessions queued datapoints delivered)
# sample SECONDS: one line for all columns; fails where the broker has gone.
sample() {
  local memory now
  memory=$(awk '/^Rss:/ { rss = $2 } /^Pss_Anon:/ { anonymous = $2 } /^Pss_File:/ { file = $2 }
    END { print anonymous + 0, file + 0, rss + 0 }' "/proc/$broker/smaps_rollup" 2>/dev/null) || return 1
  now=$(counted | awk -F= '{ count[$1] = $2 } END {
    print count["connections_now"] + 0, count["sessions_now"] + 0, count["queued_now"] + 0, count["datapoints"] + 0,
      count["delivered_qos0"] + count["delivered_qos1"] + count["delivered_qos2"] }') || return 1
  echo "$1 $memory $(descriptors) $(threads) $now" >>"$directory/samples"
}

# --- the scenarios --------------------------------------------------------------------------------------------------------

names=()
# Those that end before the rest.
declare -A is_brief=()
# run NAME FLAGS...: one scenario beside the others.
run() {
  local name=$1
  shift
  names+=("$name")
  # What is late by a quarter of an hour does not come.
  timeout $((seconds + 900)) "$binaries/skein-load" "$@" --json "$directory/$name.json" >"$directory/$name.out" 2>&1 &
  running[$name]=$!
}

layers=(--tls-ca "$data/tls/cert.pem")
for name in clients qos0 qos1 qos2 crowd; do
  account "$name"
done
sleep 1
descriptors_before=$(descriptors)
threads_before=$(threads)
echo "soak.sh      $seconds s, all transports, $rate messages/s between pairs, devices, commands, reads, churn"

device_token=$(of clients device_token)
export SKEIN_LOAD_PASSWORD=$device_token SKEIN_LOAD_TOPIC_PREFIX=$device_token
user=$(of clients user_id)
run pairs soak --addr "$mqtt" --tls-addr "$mqtts" --ws-addr "$ws" --wss-addr "$wss" "${layers[@]}" --username "$user" \
  --broker-pid "$broker" --seconds "$seconds" --rate "$rate" --churn 4 --every 60 ${report:+--report "$report"}
for transport in "tcp $mqtt" "tls $mqtts" "ws $ws" "wss $wss"; do
  run "connects over ${transport% *}" connect --churn --rate 5 --storm-nice 0 --transport "${transport% *}" \
    --addr "${transport#* }" "${layers[@]}" --username "$user" --seconds "$seconds"
done
unset SKEIN_LOAD_PASSWORD SKEIN_LOAD_TOPIC_PREFIX
# Devices over TCP at QoS 1, over the others at 0 and 2. They share a channel, so that soon there are as many datapoints in it as
# one answer may have: answers that grow for an hour would be memory that does.
devices=(--api "http://$api" --devices 20 --channels 1 --rate 100 --commands-per-second 5 --readers 1 --reads-per-second 2
  "${layers[@]}" --seconds "$seconds")
for devices_of in "0 ws $ws" "1 tcp $mqtt" "2 tls $mqtts"; do
  read -r qos transport at <<<"$devices_of"
  SKEIN_LOAD_API_TOKEN=$(of "qos$qos" api_token) run "devices at QoS $qos" telemetry --addr "$at" --transport "$transport" \
    --qos "$qos" "${devices[@]}"
done
crowd_s=$(awk -v part="$crowd" -v most="$crowd_s_max" -v seconds="$seconds" 'BEGIN {
  crowd = part * seconds
  print crowd < most ? crowd : most }')
is_brief["a crowd of readers"]=yes
SKEIN_LOAD_API_TOKEN=$(of crowd api_token) run "a crowd of readers" telemetry --addr "$mqtt" --api "http://$api" --devices 20 \
  --channels 1 --rate 100 --qos 1 --readers "$crowd_readers" --seconds "$crowd_s"

every=$(((seconds + samples_max / 12 - 1) / (samples_max / 12)))
[ "$every" -le "$sample_s_max" ] || every=$sample_s_max
began=$SECONDS
told=0
ended=
while [ $((SECONDS - began)) -lt "$seconds" ]; do
  sleep "$every"
  kill -0 "$broker" 2>/dev/null || { ended="the broker ended"; break; }
  for name in "${names[@]}"; do
    [ -z "${is_brief[$name]:-}" ] || continue
    kill -0 "${running[$name]}" 2>/dev/null || [ $((SECONDS - began)) -ge $((seconds - every)) ] || ended="$name ended early"
  done
  [ -z "$ended" ] || break
  [ $((SECONDS - began)) -lt "$seconds" ] || break
  sample $((SECONDS - began)) || { ended="the broker ended"; break; }
  if [ $((SECONDS - began - told)) -ge $((seconds < 120 ? 1 : 60)) ]; then
    told=$((SECONDS - began))
    tail -n 1 "$directory/samples" | awk '{
      printf "%6d s  anonymous %d KiB, mapped %d, descriptors %d, threads %d, connections %d, sessions %d, queued %d, delivered %d\n",
        $1, $2, $3, $5, $6, $7, $8, $9, $11 }'
  fi
done

declare -A codes=()
for name in "${names[@]}"; do
  [ -z "$ended" ] || [ "$ended" = "$name ended early" ] || kill "${running[$name]}" 2>/dev/null || true
  codes[$name]=0
  wait "${running[$name]}" || codes[$name]=$?
  unset "running[$name]"
done

# --- after it -------------------------------------------------------------------------------------------------------------

descriptors_after=
threads_after=
stopped=0
if kill -0 "$broker" 2>/dev/null; then
  # The last connections are on their way out, and threads of the API that have nothing to do stay for 10 s.
  for _ in $(seq 120); do
    descriptors_after=$(descriptors)
    threads_after=$(threads)
    [ "$descriptors_after" -ne "$descriptors_before" ] || [ "$threads_after" -ne "$threads_before" ] || break
    sleep 0.5
  done
  kill "$broker" 2>/dev/null || true
fi
wait "$broker" || stopped=$?
broker=
counters ' stopped ' >"$directory/counters"
inspected=0
"$binaries/skein" inspect --data-dir "$data" >"$directory/inspected" 2>&1 || inspected=$?

# --- the summary ----------------------------------------------------------------------------------------------------------

missed=()
# check TITLE VERDICT TEXT...: one line; a verdict other than "met" is a target missed, none at all is none.
check() {
  local title=$1 verdict=$2
  shift 2
  printf '%-20s %s%s\n' "$title" "$*" "${verdict:+ ($verdict)}"
  case $verdict in "" | met) ;; *) missed+=("$title: $*") ;; esac
}

last_words() {
  grep -v 'counted so far' "$directory/log" | tail -n 1
}

# fit COLUMN: mean, growth and its standard error per hour, and whether that is flat, of the samples after the warm-up.
fit() {
  awk -v column="$1" -v from="$(awk -v part="$warm_up" -v seconds="$seconds" 'BEGIN { print part * seconds }')" \
    -v errors="$noise_errors" -v part="$noise_part" '
    $1 >= from { n++; x[n] = $1; y[n] = $column; sum_x += $1; sum_y += $column }
    END {
      if (n < 3) exit
      mean_x = sum_x / n; mean_y = sum_y / n
      for (i = 1; i <= n; i++) { xx += (x[i] - mean_x) ^ 2; xy += (x[i] - mean_x) * (y[i] - mean_y) }
      slope = xy / xx
      for (i = 1; i <= n; i++) left += (y[i] - mean_y - slope * (x[i] - mean_x)) ^ 2
      error = sqrt(left / (n - 2) / xx)
      grown = (slope < 0 ? -slope : slope) * (x[n] - x[1])
      noise = errors * error * (x[n] - x[1])
      if (noise < part * mean_y) noise = part * mean_y
      printf "%.1f %.1f %.1f %d %s\n", mean_y, slope * 3600, error * 3600, n, grown < noise || grown == 0 ? "flat" : "not flat"
    }' "$directory/samples"
}

: >>"$directory/samples"
echo
[ -z "$ended" ] || check "the run" MISSED "$ended"
for name in "${names[@]}"; do
  if [ "${codes[$name]}" -eq 0 ]; then
    check "$name" met "what was sent came, once and in order"
  else
    check "$name" MISSED "exit code ${codes[$name]}"
  fi
  grep -E '^(delivered|stored|commands|reads|checked|sessions|retained|wills|latency|FAILED|skein-load|failed|cycle|  QoS)' \
    "$directory/$name.out" | sed 's/^/  /' || true
done

declare -A fits=()
for at in "${!columns[@]}"; do
  fits[${columns[$at]}]=$(fit $((at + 1)))
done
# grows NAME UNIT JUDGED: how a column went.
grows() {
  local mean slope error count flat verdict=
  read -r mean slope error count flat <<<"${fits[$1]}" || true
  if [ -z "$mean" ]; then
    check "$1" "" "too few samples"
    return
  fi
  if [ "$3" = yes ] && [ "$seconds" -ge "$judged_s_min" ]; then
    verdict=met
    [ "$flat" = flat ] || verdict=MISSED
  fi
  check "$1" "$verdict" "mean $mean$2, slope $slope ± $error$2 per hour over $count samples: $flat"
}
grows anonymous " KiB" yes
grows mapped " KiB" no
grows resident " KiB" no
grows descriptors "" yes
grows threads "" no
[ "$seconds" -ge "$judged_s_min" ] || echo "  (a slope is judged from $judged_s_min s on)"

# sum PATTERN: of the counters whose name it matches.
sum() {
  awk -F= -v pattern="^($1)\$" '$1 ~ pattern { sum += $2 } END { printf "%d\n", sum }' "$directory/counters"
}
into=$(sum 'matched|queued_restored')
out=$(sum 'delivered_qos[012]|dropped_(outbox_full|queue_full|away|damaged|session_ended)|expired|queued_now')
verdict=met
{ [ "$into" -eq "$out" ] && [ "$into" -gt 0 ]; } || verdict=MISSED
check ledger "$verdict" "$into matched, $out delivered, dropped, expired or queued; $(sum datapoints) datapoints stored"
# Nothing of this load is refused, and whoever it is meant for is there or has a Session.
for name in dropped_queue_full dropped_away dropped_damaged dropped_session_ended dropped_datapoints dropped_notifications \
  failed_commits retained_damaged connects_refused sockets_refused publishes_refused subscribe_refused 'refused_[a-z_]*' \
  closed_malformed closed_violation closed_keep_alive closed_connect_timeout closed_taken_over closed_tls closed_websocket \
  expired sessions_expired; do
  [ "$(sum "$name")" -eq 0 ] || check "$name" MISSED "$(sum "$name")"
done
[ "$(sum dropped_outbox_full)" -eq 0 ] || check "dropped at QoS 0" "" "$(sum dropped_outbox_full)"
left=$(sum 'sessions_now|connections_now|queued_now|retained_now')
verdict=met
[ "$left $descriptors_after $threads_after" = "0 $descriptors_before $threads_before" ] || verdict=MISSED
check "left after it" "$verdict" "$left sessions, connections and messages; ${descriptors_after:-unknown} descriptors" \
  "and ${threads_after:-unknown} threads, $descriptors_before and $threads_before before"
check "the data directory" "$([ "$inspected" -eq 0 ] && echo met || echo MISSED)" "$(tail -n 1 "$directory/inspected")"
warnings=$(grep -cE ' (WARN|ERROR) ' "$directory/log" || true)
check "its log" "$([ "$warnings" -eq 0 ] && echo met || echo MISSED)" "$warnings warnings and errors"
grep -E ' (WARN|ERROR) ' "$directory/log" | head -n 5 || true
[ "$stopped" -eq 0 ] || check "its stop" MISSED "exit code $stopped: $(last_words)"

if [ -n "$json" ]; then
  {
    printf '{\n  "seconds": %d,\n  "rate": %d,\n  "growth": {' "$seconds" "$rate"
    comma=
    for name in anonymous mapped resident descriptors threads; do
      read -r mean slope error _ flat <<<"${fits[$name]}" || true
      [ -z "$mean" ] || printf '%s\n    "%s": { "mean": %s, "slope_per_hour": %s, "standard_error": %s, "is_flat": %s }' \
        "$comma" "$name" "$mean" "$slope" "$error" "$([ "$flat" = flat ] && echo true || echo false)"
      comma=,
    done
    printf '\n  },\n  "samples": {\n    "columns": [%s],\n    "rows": [' "$(printf ', "%s"' "${columns[@]}" | cut -c 3-)"
    awk '{ gsub(/ /, ", "); printf "%s\n      [%s]", comma, $0; comma = "," }' "$directory/samples"
    printf '\n    ]\n  },\n  "counters": {'
    awk -F= '{ printf "%s\n    \"%s\": %s", comma, $1, $2; comma = "," }' "$directory/counters"
    printf '\n  },\n  "missed": %d,\n  "scenarios": {' "${#missed[@]}"
    comma=
    for name in "${names[@]}"; do
      [ -s "$directory/$name.json" ] || continue
      printf '%s\n"%s":\n' "$comma" "$name"
      cat "$directory/$name.json"
      comma=,
    done
    printf '\n  }\n}\n'
  } >"$json"
fi
if [ ${#missed[@]} -gt 0 ]; then
  printf 'soak.sh: missed: %s\n' "${missed[@]}" >&2
  exit 1
fi
echo "soak.sh: every target is met"
