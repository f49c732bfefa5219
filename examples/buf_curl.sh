#!/usr/bin/env bash
# The public API from a shell, by reflection: examples/buf_curl.sh USER [HOST:PORT]
# buf comes with `make setup` (.venv/bin/buf).
set -euo pipefail
user=${1:?usage: buf_curl.sh USER [HOST:PORT]}
address=${2:-127.0.0.1:7400}

call() { # method, request
  echo "$1 $2" >&2
  buf curl --protocol grpc --http2-prior-knowledge --data "$2" "http://$address/headrace.v1.RecommenderService/$1"
}

call Recommend "{\"user_id\": \"$user\", \"k\": 3}"

# An item that is announced now is known to every service some moments later; `unavailable` withdraws it again.
call UpsertItems '{"items": [{"item_id": "example-1", "title": "A film about a headrace", "categories": ["Documentary"]}]}'
call Track "{\"event\": {\"user_id\": \"$user\", \"item_id\": \"example-1\", \"action\": \"ACTION_LIKE\"}}"
call GetUser "{\"user_id\": \"$user\", \"limit\": 2}"
call UpsertItems '{"items": [{"item_id": "example-1", "title": "A film about a headrace", "unavailable": true}]}'
