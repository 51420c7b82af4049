# Each recipe is a plain command that works without just as well.

fmt:
    cargo fmt --check

lint:
    cargo clippy --all-targets -- -D warnings

# everything that needs no other program and no root
test:
    cargo test

# everything, against real peers; Debian, as root
test-all:
    tests/run

deny:
    cargo deny check

check-config:
    cargo test --test config

bench *ARGS:
    cargo bench --bench edge -- {{ARGS}}

ready: fmt lint test
