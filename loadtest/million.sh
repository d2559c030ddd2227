#!/usr/bin/env bash
# A million connections on one host, broker and clients together: opens them, each with a client id and one subscription of its
# own, holds them with every PINGREQ answered, sends one message to each of some of them and one to every one, checks each
# delivery, closes all at once, and prints what it took. Exit codes: 0 every target met, 1 one missed or a rule broken (it says
# which), 2 it could not be run (the sentence says what to change).
#
# What the kernel must allow is read first. Settings of sysctl that are too low are raised for the run and put back at its end; that
# takes root, and where there is nothing to raise nobody has to be root. Nothing else of the host is changed: the broker has a
# temporary data directory and ports of its own on 127.0.0.1, and ends with this script, however that ends.
set -euo pipefail

# What has to be met.
broker_bytes_max=1000     # user memory per connection, over TCP
idle_cpus_max=0.05        # of one core, while they are held
closing_growth_max=1.10   # memory of the broker from the close on, against the moment before

connections=1000000
cores=
keep_alive=1200
hold=60
deliver=10000
transport=tcp
shares_filter=
profile=release
binaries=

usage() {
  cat <<END
Usage: loadtest/million.sh [options]

  --connections N   connections to hold [$connections]; a smaller host takes fewer: about 10 KB of memory each
  --cores N         threads of the broker [as many as there are CPUs, or as it takes for the limit of open files]
  --keep-alive S    keep alive of the clients in seconds [$keep_alive]; each sends PINGREQ that often;
                    20 minutes are the most that large public services allow
  --hold S          seconds to hold the connections [$hold]
  --deliver N       clients, chosen at random, that get one message each [$deliver, at most all]
  --transport T     tcp, tls, ws or wss [$transport]
  --one-filter      all clients subscribe to one filter: the message to all is one PUBLISH, and nobody is sent one alone
  --profile P       build with this profile of cargo [$profile]
  --binaries DIR    build nothing, take skein and skein-load from there
  --help            print this
END
}

refuse() {
  echo "million.sh: $*" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  flag=$1
  case $flag in
    --help) usage; exit 0 ;;
    --one-filter) shares_filter=yes; shift; continue ;;
    --connections | --cores | --keep-alive | --hold | --deliver | --transport | --profile | --binaries) ;;
    *) refuse "there is no option $flag; --help prints those there are" ;;
  esac
  [ $# -ge 2 ] || refuse "$flag wants a value"
  value=$2
  shift 2
  case $flag in
    --transport)
      case $value in tcp | tls | ws | wss) ;; *) refuse "--transport $value is none of tcp, tls, ws and wss" ;; esac
      transport=$value
      continue
      ;;
    --profile) profile=$value; continue ;;
    --binaries) binaries=$(cd "$value" 2>/dev/null && pwd) || refuse "--binaries $value is no directory"; continue ;;
  esac
  [[ $value =~ ^[0-9]{1,8}$ ]] || refuse "$flag $value is no number of at most eight digits"
  value=$((10#$value))
  [ "$value" -gt 0 ] || [ "$flag" = --deliver ] || [ "$flag" = --keep-alive ] || refuse "$flag must be more than 0"
  case $flag in
    --connections) connections=$value ;;
    --cores) cores=$value ;;
    --keep-alive) keep_alive=$value ;;
    --hold) hold=$value ;;
    --deliver) deliver=$value ;;
  esac
done
[ "$keep_alive" -le 65535 ] || refuse "--keep-alive $keep_alive is more than MQTT has room for: give at most 65535"
[ "$deliver" -le "$connections" ] || deliver=$connections
[ -z "$shares_filter" ] || deliver=0

# --- the host -------------------------------------------------------------------------------------------------------------

# 4 KB of the kernel's for each end, 0.4 KB of the broker's and little of the generator's; TLS costs 4 KB more at each end.
bytes_each=10240
case $transport in tls | wss) bytes_each=20480 ;; esac
available_kib=$(awk '$1 == "MemAvailable:" { print $2 }' /proc/meminfo)
if [ $((connections * bytes_each / 1024)) -gt "$available_kib" ]; then
  refuse "$connections connections take about $((connections * bytes_each / 1048576)) MiB with both ends on this host, of which" \
    "$((available_kib / 1024)) MiB are available: --connections $((available_kib * 1024 / bytes_each)) fits"
fi

open_files=$(ulimit -Hn)
[ "$open_files" != unlimited ] || open_files=$(</proc/sys/fs/nr_open)
# Clients are spread over the broker's cores by chance, and each core has descriptors of its own beside them.
per_core=$((open_files * 8 / 10 - 64))
[ "$per_core" -gt 0 ] || refuse "a process may have $open_files open files here: raise the hard limit (ulimit -Hn) to 1024 at least"
cores_needed=$(((connections + per_core - 1) / per_core))
if [ -z "$cores" ]; then
  cores=$(nproc)
  [ "$cores" -ge "$cores_needed" ] || cores=$cores_needed
fi
if [ "$cores" -lt "$cores_needed" ] || [ "$cores" -gt 256 ]; then
  refuse "$connections connections take --cores $cores_needed to 256 where a process may have $open_files open files," \
    "not $cores; or raise the hard limit (ulimit -Hn)"
fi

declare -a raised=()
# sysctl NAME MIN: raised to MIN for the run, if it is there and lower.
at_least() {
  local name=$1 min=$2 file was
  file=/proc/sys/${name//./\/}
  [ -e "$file" ] || return 0
  was=$(<"$file")
  [ "$was" -lt "$min" ] || return 0
  if ! echo "$min" 2>/dev/null >"$file"; then
    refuse "$name is $was and must be $min at least: sudo sysctl -w $name=$min"
  fi
  raised+=("$name=$was")
  echo "sysctl       $name was $was, is $min for this run"
}

directory=
broker=
clean_up() {
  local code=$? setting
  trap - EXIT
  if [ -n "$broker" ] && kill -0 "$broker" 2>/dev/null; then
    kill "$broker" 2>/dev/null || true
    for _ in $(seq 150); do
      kill -0 "$broker" 2>/dev/null || break
      sleep 0.1
    done
    kill -9 "$broker" 2>/dev/null || true
  fi
  for setting in "${raised[@]}"; do
    echo "${setting#*=}" >"/proc/sys/$(tr . / <<<"${setting%%=*}")" && echo "sysctl       ${setting/=/ is } again"
  done
  [ -z "$directory" ] || rm -rf "$directory"
  exit "$code"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

at_least net.core.somaxconn 4096
at_least net.ipv4.tcp_max_syn_backlog 4096
at_least fs.file-max $((connections * 2 + 100000))
# A connection on the loopback interface is tracked too, where anything is.
at_least net.netfilter.nf_conntrack_max $((connections * 12 / 10 + 10000))
read -r port_first port_last </proc/sys/net/ipv4/ip_local_port_range
sources=$(((connections + 19999) / 20000))
if [ $(((port_last - port_first + 1) * sources)) -lt $((connections * 11 / 10)) ]; then
  sources=$(((connections * 11 / 10) / (port_last - port_first + 1) + 1))
fi

# --- the programs ---------------------------------------------------------------------------------------------------------

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
port_name=${transport/#tcp/mqtt}
port_name=${port_name/#tls/mqtts}
closed=()
for name in mqtt mqtts ws wss; do
  [ "$name" = "$port_name" ] || closed+=("--$name-port" off)
done
# Clients share the CPUs with the broker, so that one may be slow to say its first word.
"$binaries/skein" --access open --bind 127.0.0.1 --data-dir "$directory/data" --ready-file "$directory/ready" \
  "--$port_name-port" 0 "${closed[@]}" --cores "$cores" --private-fds auto \
  --max-connections $((connections + 100)) --connect-timeout 60s >"$directory/log" 2>&1 &
broker=$!
for _ in $(seq 300); do
  [ ! -s "$directory/ready" ] || break
  if ! kill -0 "$broker" 2>/dev/null; then
    broker=
    refuse "the broker did not start: $(tail -n 1 "$directory/log")"
  fi
  sleep 0.1
done
port=$(grep -o "\"$port_name\": *[0-9]*" "$directory/ready" | grep -o '[0-9]*$') ||
  refuse "the broker was not ready within 30 s: $(tail -n 1 "$directory/log")"

# --- the run --------------------------------------------------------------------------------------------------------------

flags=(--addr "127.0.0.1:$port" --broker-pid "$broker" --transport "$transport" --connections "$connections"
  --keep-alive "$keep_alive" --hold "$hold" --broadcast --measure-close --abrupt --json "$directory/figures")
[ "$sources" -le 1 ] || flags+=(--source-addresses "$sources")
[ "$deliver" -eq 0 ] || flags+=(--deliver "$deliver")
[ -z "$shares_filter" ] || flags+=(--filter all)
case $transport in tls | wss) flags+=(--tls-ca "$directory/data/tls/cert.pem") ;; esac
echo "million.sh   $connections connections over $transport, $cores cores of the broker, $open_files open files per table"
# In an hour nothing is missed by patience.
code=0
timeout 3600 "$binaries/skein-load" idle "${flags[@]}" || code=$?
stopped=0
kill "$broker" 2>/dev/null || true
wait "$broker" || stopped=$?
broker=
if [ ! -s "$directory/figures" ]; then
  tail -n 2 "$directory/log" >&2
  refuse "skein-load ended with exit code $code before it had figures, the broker with $stopped; its last words are above"
fi

# --- the summary ----------------------------------------------------------------------------------------------------------

# figure KEY...: a number of the figures by the keys that lead to it; one key stands on a line, indented by its depth.
figure() {
  local IFS=/
  awk -v wanted="$*" '
    match($0, /^ +"[a-z_0-9]+":/) {
      split($0, parts, "\"")
      depth = length(parts[1]) / 2
      path[depth] = parts[2]
      found = path[1]
      for (i = 2; i <= depth; i++) found = found "/" path[i]
      if (found == wanted) { sub(/^[^:]*: */, ""); sub(/,$/, ""); print; exit }
    }
  ' "$directory/figures"
}

missed=()
# line TITLE FIGURE MAX TEXT...: one line; the figure must not be above MAX, unless that is "-".
line() {
  local title=$1 figure=$2 max=$3 verdict=
  shift 3
  if [ "$max" != - ]; then
    if awk -v figure="$figure" -v max="$max" 'BEGIN { exit !(figure <= max) }'; then
      verdict=" (at most $max: met)"
    else
      verdict=" (at most $max: MISSED)"
      missed+=("$title: $*, and at most $max was wanted")
    fi
  fi
  printf '%-20s %s%s\n' "$title" "$*" "$verdict"
}
round() { LC_ALL=C printf "%.${2:-0}f" "$1"; }
mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f MiB", bytes / 1048576 }'; }

held=$(figure broker_bytes_held)
bytes=$(round "$(figure broker_bytes_per_connection)")
# Of TLS the keys and the library's state are a multiple of all else.
case $transport in tls | wss) broker_bytes_max=- ;; esac
cpus=$(round "$(figure broker_cpus_held)" 4)
growth=$(awk -v max="$(figure broker_bytes_closing_max)" -v was="$(figure broker_bytes_at_close)" 'BEGIN { printf "%.3f", max / was }')
seconds=$(round "$(figure set_up_seconds)" 2)
pings=$(figure pings_held)

echo
line "broker memory" "$bytes" "$broker_bytes_max" "$bytes bytes of user memory per connection, $(mib "$held") in all"
line "kernel memory" - - "$(round "$(figure kernel_bytes_per_connection)") bytes per connection, both ends together"
line "connects" - - "$(awk -v n="$connections" -v s="$seconds" 'BEGIN { printf "%d", n / s }') per second, all in $seconds s"
line "CPU while idle" "$cpus" "$idle_cpus_max" "$cpus of one core over $(round "$(figure held_seconds)") s," \
  "with $pings PINGREQ at keep alive $keep_alive"
if [ "$deliver" -gt 0 ]; then
  line "one message each" - - "$(figure chosen delivered) of $deliver clients in $(round "$(figure chosen seconds)" 2) s;" \
    "latency p50 $(round "$(figure chosen latency_us p50)") µs, p99 $(round "$(figure chosen latency_us p99)") µs"
fi
line "one message to all" - - "$(figure all delivered) of $connections clients in $(round "$(figure all seconds)" 2) s" \
  "by $(figure all published) PUBLISH"
line "close of all" "$growth" "$closing_growth_max" "$growth times the broker's memory at most," \
  "$(mib "$(figure broker_bytes_at_close)") before it and $(mib "$(figure broker_bytes_after)") after 3 s"
line "kernel after it" - - "$(round "$(figure kernel_bytes_per_connection_after)") bytes per connection"
line "connections lost" "$(figure lost)" 0 "$(figure lost)"
line "PINGREQ unanswered" "$(figure pings_unanswered)" 0 "$(figure pings_unanswered) of $(figure pings)"
for fault in missing doubled misdelivered damaged; do
  line "$fault" "$(figure delivery_faults $fault)" 0 "$(figure delivery_faults $fault)"
done
[ "$code" -eq 0 ] || [ ${#missed[@]} -gt 0 ] || missed+=("skein-load, which ended with exit code $code")
[ "$stopped" -eq 0 ] || missed+=("the stop of the broker, which ended with exit code $stopped: $(tail -n 1 "$directory/log")")
if [ ${#missed[@]} -gt 0 ]; then
  printf 'million.sh: missed: %s\n' "${missed[@]}" >&2
  exit 1
fi
echo "million.sh: every target is met"
