//! A mesh with the real apps, clients and load balancers that people run.
//!
//! `testbed/ecosystem` installs them and runs all of this; `cargo test` lists the tests as ignored.
//! A test whose software could not be had ends as ignored, with the reason.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a panic fails the test")]

mod balancers;
mod browser;
mod deploy;
mod front_doors;
#[allow(dead_code, reason = "each kind of package has its way, used or not")]
mod installed;
mod libraries;
mod metrics;
mod own_ids;
mod pages;
mod pinned;
mod proxied;
mod recycled;
mod redis_commands;
mod redis_json;
mod release;
mod rollout;
mod sessions;
mod streams;
#[allow(dead_code, reason = "shared with the other tests, which use the rest of it")]
#[path = "../promises/support.rs"]
mod support;

use std::future::Future;
use std::process::ExitCode;

use libtest_mimic::{Arguments, Completion, Trial};

use installed::Tested;

fn main() -> ExitCode {
    let trials = [
        balancers::trials(),
        browser::trials(),
        deploy::trials(),
        front_doors::trials(),
        libraries::trials(),
        metrics::trials(),
        own_ids::trials(),
        pages::trials(),
        pinned::trials(),
        proxied::trials(),
        recycled::trials(),
        redis_commands::trials(),
        release::trials(),
        rollout::trials(),
        sessions::trials(),
        streams::trials(),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials.into_iter().flatten().collect()).exit_code()
}

/// One test, which runs on a runtime of its own.
fn test<F>(name: &str, run: impl FnOnce() -> F + Send + 'static) -> Trial
where
    F: Future<Output = Tested>,
{
    let trial = Trial::ignorable_test(name, move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(match runtime.block_on(run()) {
            Ok(()) => Completion::Completed,
            Err(skipped) => Completion::ignored_with(skipped),
        })
    });
    trial.with_ignored_flag(true)
}
