//! Asks a ready copy whether it can still serve, when the core decides so, and carries out what
//! follows. While all is well that costs a look at three counters twice a second, and each request
//! a store and a count.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use warmhop_core::health::{Found, Health, Signs, Verdict};
use warmhop_core::ids::Now;

use crate::app::slot::{Copy, Slot};
use crate::app::{Answer, AskFn};

/// How often a copy's counters are read, unless it is asked more often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Runs until the copy is stopped or ends.
pub(crate) async fn watch(slot: Arc<Slot>, copy: Arc<Copy>, ask: AskFn) {
    let policy = slot.spec().policy.alive.clone();
    let every = policy.every.map_or(LOOK_EVERY, |every| every.min(LOOK_EVERY));
    let mut health = Health::new(policy, slot.now());
    loop {
        tokio::time::sleep(every).await;
        if !slot.holds(&copy) {
            return;
        }
        let signs = Signs {
            in_flight: copy.awaiting.load(Ordering::Relaxed),
            answered: Now(copy.answered.load(Ordering::Relaxed)),
            failed_in_a_row: copy.failed_in_a_row.load(Ordering::Relaxed),
        };
        if !health.is_due(signs, slot.now()) {
            continue;
        }
        let (found, said) = match ask().await {
            Answer::Well => (Found::Well, String::new()),
            Answer::Unwell(said) => (Found::Unwell, said),
            Answer::Silent(said) => (Found::Silent, said),
        };
        if found == Found::Well {
            copy.failed_in_a_row.store(0, Ordering::Relaxed);
        }
        match health.found(found, slot.now()) {
            Verdict::Unchanged => {}
            Verdict::Out => slot.unwell(&copy, &said),
            Verdict::Back => slot.well(&copy),
            Verdict::Restart => slot.hangs(&copy, &said),
        }
    }
}
