# What one types daily: `just` lists it (https://just.systems). Each recipe is one command of the
# project, which can be typed without it.

# Lists the recipes.
default:
    @just --list

# Everything that must hold before a change goes in.
ci:
    bash .ci/run

# Formatting and lints alone.
lint:
    cargo fmt --all --check
    cargo clippy --locked --workspace --all-targets --all-features -- -D warnings

# Every test, or those of one crate: `just test -p warmhop-core`.
test *ARGS="--workspace":
    cargo test --locked --all-features {{ARGS}}

# The scenarios of an app's life, in seconds.
scenarios:
    cargo test --locked -p warmhop-core --test app_scenarios

# The reference of the configuration, written again from the table of keys.
reference:
    WARMHOP_WRITE_DOCS=1 cargo test --locked -p warmhop-cli --all-features --lib keys

# A mesh of N peers on this machine; `just down` stops it.
up N="3":
    testbed/up {{N}}

# Stops what `just up` started.
down:
    testbed/down

# The guided tour.
demo:
    testbed/demo

# Load and faults; `just chaos --for 3m`.
chaos *ARGS="--for 1m":
    testbed/chaos {{ARGS}}

# Real frameworks, clients and balancers; `just ecosystem redis` for those with that in their name.
ecosystem *ARGS:
    testbed/ecosystem {{ARGS}}

# The library's guide and interface.
docs:
    cargo doc --locked -p warmhop --all-features --no-deps --open

# Packages of the crates, tried as far as publishing them.
dry-run *ARGS:
    release/dry-run {{ARGS}}
