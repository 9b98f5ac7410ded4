#!/usr/bin/env bash
# Verifies a webhook as your web server received it: its path, a file of its header lines, a file of its body. Needs bash, openssl
# and jq. Ends with 0 for an event to deal with, 10 for one that was dealt with before (answer both 2xx), 1 for a request that is
# not the gateway's or is too old (answer 401).
#
#   export WEBHOOK_SECRET=whsec_...            # as configured for the endpoint
#   export WEBHOOK_SECRET_PREVIOUS=...         # only while you change over
#   export SEEN=/var/lib/hooks/seen            # a directory: ids of events dealt with
#   ./verify-webhook.sh '/hooks?site=7' headers.txt body.json
set -euo pipefail

tolerance_s=300
path=$1 headers=$2 body=$3

refuse() { echo "refused: $*"; exit 1; }

header() { tr -d '\r' <"$headers" | sed -n "s/^$1: *//Ip" | head -n 1; }

fresh() {
    [[ $1 =~ ^[0-9]{1,12}$ ]] || return 1
    local age=$(($(date +%s) - 10#$1))
    [ "${age#-}" -le $tolerance_s ]
}

# Base64 of the HMAC-SHA256 of what comes in, by a key in hex. A key of no bytes is no key.
mac() { openssl dgst -sha256 -mac HMAC -macopt "hexkey:$1" -binary | base64 -w0; }

hex() { od -An -tx1 -v | tr -d ' \n'; }

# The scheme of standardwebhooks.com.
standard_webhooks() {
    local key expected given
    case $1 in
    whsec_*) key=$(printf %s "${1#whsec_}" | base64 -d | hex) ;;
    *) key=$(printf %s "$1" | hex) ;;
    esac
    expected=v1,$({ printf '%s.%s.' "$(header webhook-id)" "$(header webhook-timestamp)"; cat "$body"; } | mac "$key")
    # There are two signatures while the endpoint has two secrets.
    for given in $(header webhook-signature); do
        if [ "$given" = "$expected" ]; then return 0; fi
    done
    return 1
}

# The scheme of signed API requests; the key is the secret's text.
gateway_scheme() {
    local digest expected
    digest=$(openssl dgst -sha256 -r "$body" | cut -d' ' -f1)
    expected=$(printf 'POST\n%s\n%s\n%s\n%s' "$path" "$(header x-timestamp)" "$(header x-nonce)" "$digest" |
        mac "$(printf %s "$1" | hex)" | base64 -d | hex)
    [ "$(header x-signature)" = "$expected" ]
}

# One scheme is enough; here both must hold, each by one of our secrets.
standard='' gateway=''
for secret in "${WEBHOOK_SECRET:?}" ${WEBHOOK_SECRET_PREVIOUS:+"$WEBHOOK_SECRET_PREVIOUS"}; do
    if standard_webhooks "$secret"; then standard=yes; fi
    if gateway_scheme "$secret"; then gateway=yes; fi
done
if [ -z "$standard" ] || [ -z "$gateway" ]; then refuse "wrong signature"; fi
if ! fresh "$(header webhook-timestamp)" || ! fresh "$(header x-timestamp)"; then refuse "too old"; fi

# Delivery is at least once, so an event may come again: hours later by a retry, within minutes by somebody who replays a request.
# A directory can be made once, whoever else tries. In earnest this is a table with a unique column.
event=$(jq -r '"\(.event_type) \(.order_no // .device_phy_id)"' "$body")
id=$(jq -r '.event_id | gsub("[^0-9A-Za-z-]"; "")' "$body")
if ! mkdir "${SEEN:?}/$id" 2>/dev/null; then
    echo "repeated: $event"
    exit 10
fi
echo "event: $event"
