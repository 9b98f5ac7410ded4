#!/usr/bin/env bash
# Starts a charge, waits until it runs, stops it and prints the order. Needs bash, curl, openssl and jq.
#
#   export CHARGEGATE_URL=http://127.0.0.1:7055 CHARGEGATE_KEY=...
#   export CHARGEGATE_HMAC_SECRET=...          # only for keys that must sign
#   ./charge.sh 40aace04 1 30                  # device, port, minutes
set -euo pipefail

base=/api/v1/third
patience_s=120
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

die() { echo "$*" >&2; exit 1; }

# The headers of a signed request, one a line: METHOD PATH BODY; the path is path and query exactly as sent.
signature() {
    local method=$1 path=$2 body=$3 timestamp nonce digest mac
    timestamp=$(date +%s)
    nonce=$(openssl rand -hex 16)
    digest=$(printf %s "$body" | openssl dgst -sha256 -r | cut -d' ' -f1)
    mac=$(printf '%s\n%s\n%s\n%s\n%s' "$method" "$path" "$timestamp" "$nonce" "$digest" |
        openssl dgst -sha256 -hmac "$CHARGEGATE_HMAC_SECRET" -r | cut -d' ' -f1)
    printf 'X-Timestamp: %s\nX-Nonce: %s\nX-Signature: %s\n' "$timestamp" "$nonce" "$mac"
}

# Makes a request and leaves the answer in $work/answer: METHOD PATH [BODY [KEY]]. Tries again where that is safe and makes sense:
# GET always, POST only with an Idempotency-Key, because then the gateway knows a repetition and does nothing twice.
call() {
    local method=$1 path=$base$2 body=${3-} once=${4-} until=$((SECONDS + patience_s)) status code wait repeatable=
    if [ "$method" = GET ] || [ -n "$once" ]; then repeatable=yes; fi
    while :; do
        local args=(--silent --max-time 10 --request "$method" --output "$work/answer" --dump-header "$work/head"
            --write-out '%{http_code}' --header "X-Api-Key: $CHARGEGATE_KEY")
        if [ -n "$body" ]; then args+=(--header 'Content-Type: application/json' --data-binary "$body"); fi
        if [ -n "$once" ]; then args+=(--header "Idempotency-Key: $once"); fi
        if [ -n "${CHARGEGATE_HMAC_SECRET-}" ]; then
            # Each attempt has a nonce of its own: a nonce counts once.
            signature "$method" "$path" "$body" >"$work/signature"
            args+=(--header "@$work/signature")
        fi
        if ! status=$(curl "${args[@]}" "${CHARGEGATE_URL%/}$path"); then
            # No answer: it may have taken effect or not. The same key finds out.
            if [ -z "$repeatable" ] || [ $SECONDS -ge $until ]; then die "no answer to $method $path"; fi
            echo "no answer, again" >&2
            sleep 1
            continue
        fi
        case $status in 2??) return ;; esac
        code=$(jq -r .error "$work/answer")
        case $status,$code in
        429,* | 503,* | *,IDEMPOTENCY_IN_PROGRESS)
            if [ -n "$repeatable" ] && [ $SECONDS -lt $until ]; then
                wait=$(tr -d '\r' <"$work/head" | sed -n 's/^retry-after: *//Ip')
                echo "$code, again" >&2
                sleep "${wait:-1}"
                continue
            fi
            ;;
        *,PORT_BUSY) die "the port is taken by order $(jq -r .data.order_no "$work/answer")" ;;
        *,DEVICE_OFFLINE) die "the device is not connected: try again when device.online came" ;;
        esac
        # The message is for people; quote the request id when you ask for help.
        die "$status $code: $(jq -r '"\(.message) (request \(.request_id))"' "$work/answer")"
    done
}

if [ $# -ne 3 ]; then die "usage: $0 DEVICE PORT MINUTES"; fi
: "${CHARGEGATE_URL:?}" "${CHARGEGATE_KEY:?}"
device=$1 port_no=$2 minutes=$3

for ((page = 1; ; page++)); do
    call GET "/devices?online=true&page=$page&size=200"
    jq -r '.data.items[] | "online: \(.device_id) \(.protocol) score \(.score)"' "$work/answer"
    if jq -e '.data | .page * .size >= .total' "$work/answer" >/dev/null; then break; fi
done

# One key per thing your customer wants, made and stored before the first attempt. After a crash you repeat it.
once=$(openssl rand -hex 16)
wanted="{\"port_no\":$port_no,\"mode\":\"time\",\"duration_minutes\":$minutes,\"paid_cent\":150}"
call POST "/devices/$device/charge" "$wanted" "$once"
order_no=$(jq -r .data.order_no "$work/answer")
echo "order: $order_no $(jq -r .data.status_text "$work/answer")"
call POST "/devices/$device/charge" "$wanted" "$once"
if [ "$(jq -r .data.order_no "$work/answer")" != "$order_no" ]; then die "the same key is the same order"; fi

# 202 said that the order is stored. What the device makes of it is told by events, the first of which has a position. Keep the
# last position you have dealt with, and begin there after a restart.
call GET "/orders/$order_no/events"
after=$(jq -r '.data.items[0].pos // 0' "$work/answer")
for ((until = SECONDS + patience_s; SECONDS < until; )); do
    call GET "/events?after=$after&limit=500"
    after=$(jq -r .data.next_after "$work/answer")
    cp "$work/answer" "$work/events"
    if jq -e '.data.items == []' "$work/events" >/dev/null; then sleep 0.5; fi
    for event in $(jq -r --arg order "$order_no" '.data.items[] | select(.order_no == $order) | .event_type' "$work/events"); do
        echo "event: $event"
        case $event in
        # A stop needs no key: repeated, it is answered the same. The key is what lets `call` try again.
        charging.started) call POST "/orders/$order_no/stop" "" "$(openssl rand -hex 16)" ;;
        order.failed | order.timeout) die "it did not charge" ;;
        order.settled)
            # The totals are final: bill by this event and no other.
            jq -r --arg order "$order_no" '.data.items[] | select(.order_no == $order and .event_type == "order.settled").data |
                "settled: \(.order_no) \(.status_text) \(.duration_seconds) s \(.energy_wh) Wh"' "$work/events"
            exit 0
            ;;
        esac
    done
done
die "the event did not come"
